"""A federation on one machine: sample data and sites as local processes."""
