"""The device that a name means, and its memory: what is free, what this process holds, what a call needs."""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def device(name: str | torch.device) -> torch.device:
    """The device meant by a name or by "auto".

    Raises ValueError if this machine or this torch has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(f"device={name} cannot be used ({str(error).splitlines()[0]}): give auto or cpu") from None


def free_bytes(device: torch.device) -> int | None:
    """What may still be taken, by the device, the machine and the process's cgroups; None where it cannot be measured."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"))
    return None if found is None else min([1024 * int(found[1]), *cgroup_bytes()])


def held_bytes(device: torch.device) -> int | None:
    """What this process holds, on the CPU its resident set; None where it cannot be measured."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    release(device)
    return _status("VmRSS")


def needed_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """What the call holds at its peak beyond what is held before it; None where it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    release(device)  # or what the call takes of it would not be seen in the resident set
    try:
        (PROC / "self" / "clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        call()
        return None
    held = _status("VmRSS")
    call()
    peak = peak_bytes()
    return None if held is None or peak is None else peak - held


def peak_bytes() -> int | None:
    """The largest resident set of this process since it began or `needed_bytes` was last called."""
    return _status("VmHWM")


def cgroup_bytes() -> Iterator[int]:
    """What each cgroup around this process, version 1 or 2, leaves to take; caches do not count as taken."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        own = root / path.lstrip("/")
        for group in (own, *own.parents):  # a container may see itself as the root: then its path does not exist
            allowed, taken = (_read(group / f"memory.{name}").strip() for name in (limit, usage))
            if allowed.isdigit() and taken.isdigit():
                cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(group / "memory.stat"), re.MULTILINE)
                yield int(allowed) - int(taken) + (int(cache[1]) if cache else 0)
            if group == root:
                break


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """What was freed but kept for reuse goes back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine refused an allocation."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _status(name: str) -> int | None:
    found = re.search(rf"{name}:\s+(\d+) kB", _read(PROC / "self" / "status"))
    return 1024 * int(found[1]) if found else None


def _read(path: Path) -> str:
    """The file's text, nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
