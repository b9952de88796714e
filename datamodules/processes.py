"""`map` over several processes, with results in the order of the items."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2

AHEAD = 4
"""Results per process that may wait to be asked for."""

Map = Callable[..., Iterator[Any]]
"""As `map` of one function and some items."""


@contextmanager
def processes(workers: int) -> Iterator[Map]:
    """`map` over so many processes, with results in the order of the items and no more work ahead than can wait."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that a thread of ours may hold
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_process)
    try:
        yield partial(_in_order, pool, AHEAD * workers)
    except BrokenProcessPool:
        raise OSError(
            f"workers={workers}: one of them was killed, most often for lack of memory: run the same again with fewer, "
            "it goes on where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """One thread per process, and Ctrl-C is the main process's to answer."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_order(pool: ProcessPoolExecutor, ahead: int, function: Callable, items: Iterable[Any]) -> Iterator[Any]:
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
