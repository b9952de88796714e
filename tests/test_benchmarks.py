"""The benchmarks of data, degradations and restoring still run, on next to nothing, and say how they were run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.images import write_image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


def result(folder: Path, name: str, *words: object) -> str:
    """What a benchmark prints, run in a folder of its own."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{name}.py {' '.join(map(str, words))}`, commit " in done.stdout
    return done.stdout


def test_speed_of_degradations(tmp_path: Path) -> None:
    printed = result(tmp_path, "degradations", "--seconds", 0.001, "--rounds", 1)
    rows = [line for line in printed.splitlines() if line.startswith(("|rain|", "|poisson|", "|real_esrgan order_8|"))]
    assert len(rows) == 3


def test_all_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from all_in_one import LEAKS, SETS

    rng = np.random.default_rng(0)
    for folder in SETS:
        names = ["1", "2", *LEAKS.get(folder, ())]
        sides = ("",) if folder.endswith("/gt") else ("lq", "gt")
        for path in (tmp_path / "samples" / folder / side / f"{name}.png" for name in names for side in sides):
            write_image(path, rng.integers(0, 256, (100, 100, 3), np.uint8))
    printed = result(tmp_path, "all_in_one", "samples", "--steps", 1, 1, 1)
    counts = [row.split(" | ")[:2] for row in printed.splitlines() if row.startswith(("| haze", "| low", "| noise"))]
    assert counts == [["| haze", "4"], ["| noise", "2"], ["| low_light", "2"]]
    assert "2 low_light pairs" in printed


def test_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDG_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    for path in ("derain/a/lq/1", "derain/a/gt/1", "sr/b/lq/1", "sr/b/gt/1", "noise/c/gt/1"):
        side = 16 if path == "sr/b/lq/1" else 64
        write_image(tmp_path / "samples" / f"{path}.png", rng.integers(0, 256, (side, side, 3), np.uint8))
    printed = result(tmp_path, "evaluate", "samples", "--images", 1)
    rows = [row.split(" | ")[:2] for row in printed.splitlines() if row.startswith("| ")]
    assert rows == 2 * [["| set", "IMAGES"], ["| derain/a", "1"], ["| sr/b x4", "1"]]


def test_explain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("lq", "gt"):
        write_image(tmp_path / "dehaze" / "ohaze" / part / "1.png", rng.integers(0, 256, (40, 48, 3), np.uint8))
    printed = result(tmp_path, "explain", tmp_path)
    assert "| dehaze/ohaze | haze | 1 | " in printed
    assert "| mean of classes | 2 | " in printed


def test_restore(tmp_path: Path) -> None:
    printed = result(tmp_path, "restore", "--quick", "--sizes", "T", "--threads", 1)
    rows = [row.split(" | ") for row in printed.splitlines() if row.startswith("| T | ")]
    seen = [(row[1], row[2]) for row in rows if row[3] == "ours, float32"]
    assert seen == [("whole", "1"), ("whole", "3"), ("tiles of 48", "1")]
    gaps = [row.split(" | ")[2] for row in printed.splitlines() if row.startswith(("| bridge.jpg", "| hills.jpg"))]
    assert gaps == ["32", "64", "32", "64"]
    assert "| 400x300 | 0.8 | " in printed
