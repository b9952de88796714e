"""A rank that Lightning started ends with the process that started it, whatever it does just then. Imports next to nothing.

Ranks that have met notice when one of them is gone. One that still imports, or waits for the others to come, would wait for
minutes and answer no signal.
"""

import ctypes
import os
import signal
import sys

STARTED_BY = "BDG_STARTED_BY"
"""The environment variable by which rank 0 tells those that it starts its process number."""
PR_SET_PDEATHSIG = 1  # sys/prctl.h


def end_with_rank_0() -> None:
    """On Linux, binds a rank to the process that started it; to be called first of all, by each rank.

    Rank 0, and ranks that srun or torchrun started, only leave their number for those that they may start: these have a
    LOCAL_RANK from them. Where the parent has ended before, so does this process.
    """
    starter = os.environ.get(STARTED_BY)
    os.environ[STARTED_BY] = str(os.getpid())
    if starter is None or os.environ.get("LOCAL_RANK", "0") == "0" or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # from the kernel: no handler is asked
    if os.getppid() != int(starter):  # it ended before we could ask
        os._exit(1)
