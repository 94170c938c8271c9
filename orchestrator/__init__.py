"""The centre: experiments, rounds, communication, runs and the researcher's command."""
