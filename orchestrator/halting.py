"""How a run is stopped before its end: after its round, or at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Halt:
    """Whether a run is to stop, and how soon; set by signals, other threads, other processes.

    Attributes:
        after_round: The round under way is the last.
        is_in_round: Whether there is one.
    """

    def __init__(self) -> None:
        self.after_round = False
        self.is_in_round = False
        self._at_once = threading.Event()

    def reset(self) -> None:
        """Begin anew, for another run or the same one resumed."""
        self.after_round = self.is_in_round = False
        self._at_once.clear()

    def at_once(self) -> None:
        """Have the run stop as soon as it notices, which takes a tenth of a second."""
        self._at_once.set()

    def check(self) -> None:
        """Do nothing while the run is not to stop at once.

        Raises:
            KeyboardInterrupt: It is.
        """
        if self._at_once.is_set():
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            KeyboardInterrupt: The run is to stop at once.
        """
        self._at_once.wait(seconds)
        self.check()


@contextmanager
def stopped_by_signals(halt: Halt, say: Callable[[str], None]) -> Iterator[None]:
    """Have the first Ctrl-C in a round stop the run after it, and all others stop it at once.

    SIGTERM stops it at once, as another would: its machine is about to be shut down.

    Args:
        halt: The run's.
        say: Tells the person at the terminal what happens.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if halt.after_round or not halt.is_in_round:
            raise KeyboardInterrupt
        halt.after_round = True
        say("stopping after this round; Ctrl-C again to stop at once")

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    kept = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
