"""The trainer as a program of its own.

python -m datasite.training JOBS_FD LIFELINE_FD ARENA_FD THREADS
"""

import sys

from core.imports import uncollected

with uncollected():
    from datasite.training.loop import main

if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
