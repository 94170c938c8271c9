"""Work in a process of its own, and what a process has of memory (Linux: it is read from /proc)."""

import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

from core.commands import configure_logging

P = ParamSpec("P")
T = TypeVar("T")


def apart(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Give what `work` returns in a fresh process, so that measurements leave nothing behind.

    The process is gone when this returns or raises.

    Raises:
        RuntimeError: It raised, with its traceback above, or it ended without an answer.
    """
    context = get_context("spawn")  # a fork would begin with this process's memory
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, args, kwargs))
    process.start()
    theirs.close()
    try:
        result: T = ours.recv()
    except EOFError as exc:
        process.join()
        raise RuntimeError(
            f"{work.__name__} ended with exit code {process.exitcode}; why is above"
        ) from exc
    finally:
        process.kill()
        process.join()
        ours.close()
    return result


def _answer(
    pipe: Connection,
    work: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    configure_logging(debug=False)  # as in `orchestrator run`
    pipe.send(work(*args, **kwargs))


def resident_bytes(pid: int | str = "self") -> int:
    """Give how much memory the process has now."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int | str = "self") -> int:
    """Give the most memory it has had at once since it started, or since `forget_peak`."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int | str = "self") -> None:
    """Have the peak begin anew at what the process has now; see proc(5), `clear_refs`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {name}: the process has ended")
