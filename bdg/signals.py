"""Signals that come when nothing can answer them: remembered, and answered after a step. Imports next to nothing.

A job may be told to leave while Python still imports torch, or between two stages. By default SIGUSR1 would end it there as a
failure, which no cluster puts back into its queue.
"""

import signal
from types import FrameType

TOLD_TO_LEAVE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (*TOLD_TO_LEAVE, signal.SIGINT)
_received: list[int] = []


def remember() -> None:
    """From here on such signals are written down and do nothing else, until `callbacks.preempt` answers them."""
    for signum in TOLD_TO_LEAVE:
        signal.signal(signum, note)


def note(signum: int, frame: FrameType | None = None) -> None:
    """A handler that writes the signal down."""
    _received.append(signum)


def received() -> tuple[int, ...]:
    """Those that came and were not answered."""
    return tuple(_received)


def answered() -> None:
    """What came is done with."""
    _received.clear()
