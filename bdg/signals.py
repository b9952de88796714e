"""Signals that come before training can answer them: remembered, and answered after its first step. Imports next to nothing.

A job may be told to leave while Python still imports torch. By default SIGUSR1 would end it there as a failure, which no
cluster puts back into its queue.
"""

import signal
from types import FrameType

TOLD_TO_LEAVE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (*TOLD_TO_LEAVE, signal.SIGINT)
_received: list[int] = []


def remember() -> None:
    """From here on such signals are written down and do nothing else, until `callbacks.preempt` answers them."""
    for signum in TOLD_TO_LEAVE:
        signal.signal(signum, _remember)


def remembered() -> int | None:
    """The first of them, taken off the list."""
    first = _received[0] if _received else None
    _received.clear()
    return first


def _remember(signum: int, frame: FrameType | None) -> None:
    _received.append(signum)
