"""Under which circumstances a number was measured: the line that opens every result file."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path


def circumstances(*packages: str) -> str:
    """Command, commit, date, hardware, load and versions, with those of `packages` among them."""
    commit = subprocess.run(["git", "log", "-1", "--format=%h"], capture_output=True, text=True).stdout.strip()
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return (
        f"`{threads}python {' '.join(sys.argv)}`, commit {commit or 'unknown'}, {date.today()}. {cpu()}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f} at the end; {platform.system()}, Python {platform.python_version()}"
        + (f", {versions}" if versions else "")
        + "."
    )


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor()
