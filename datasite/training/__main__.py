"""The trainer process: jobs come in over a pipe that the site holds, replies go back.

    python -m datasite.training JOBS_FD LIFELINE_FD ASKED_FD ANSWERED_FD THREADS

The pipe carries what is to be done; models lie in two pieces of memory that the site sees too. The
first thing that goes back is a word that it has started. It ends when the site does, whatever the
site died of: the lifeline is a pipe that only the site holds open. An unexpected error ends it with
a traceback in the site's log; the site answers the request with a `Failure` and starts a new
trainer.
"""

import json
import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import cast

from core.imports import uncollected

with uncollected():
    import torch

    from core.wire import Parcel
    from datasite.mailbox import Mailbox
    from datasite.training.work import Assignment, Job, Worker, perform


def main(jobs_fd: int, lifeline_fd: int, asked_fd: int, answered_fd: int, threads: int) -> None:
    """Perform jobs until the site closes the pipe."""
    threading.Thread(target=_end_with_the_site, args=(lifeline_fd,), daemon=True).start()
    torch.set_num_threads(threads)
    worker, asked, answered = Worker(), Mailbox(asked_fd), Mailbox(answered_fd)
    with Connection(jobs_fd) as pipe:
        pipe.send_bytes(b"started")
        while True:
            try:
                job, lengths = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            head, body, state = asked.parts(lengths)
            assignment = Assignment(cast("Job", job), Parcel(bytes(head), body), bytes(state))
            reply, kept = perform(worker, assignment)
            pipe.send_bytes(json.dumps(answered.put((reply.head, reply.body, kept))).encode())


def _end_with_the_site(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)  # returns only when the site's end is closed
    os._exit(0)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
