"""`bdg prune`: only what nobody needs, only when told to, and nothing of what somebody works on."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main

RUN = "a" * 12


def checkpoints(run: Path, *names: str, size: int = 1000) -> None:
    (run / "checkpoints").mkdir()
    sums = ""
    for name in names:
        (run / "checkpoints" / name).write_bytes(name.encode() * size)
        sums += f"{hashlib.sha256(name.encode() * size).hexdigest()}  {name}\n"
    (run / "checkpoints" / "SHA256SUMS").write_text(sums)


def pruned(*words: str) -> list[str]:
    """What was found, relative to the root."""
    assert main(["prune", "json=prune.json", *words]) == 0
    return [str(Path(each["path"]).relative_to("runs")) for each in json.loads(Path("prune.json").read_text())]


def test_a_finished_run_keeps_its_weights(made: Any, capsys: Any) -> None:
    run = made.run(RUN)
    checkpoints(run, "last.ckpt", "previous.ckpt")

    assert pruned() == [f"demo/generation/{RUN}/checkpoints"]
    assert "can be deleted: dry=false does it" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.ckpt").exists()

    assert pruned("dry=false") == [f"demo/generation/{RUN}/checkpoints"]
    assert not (run / "checkpoints").exists()
    assert (run / "weights" / "ema.safetensors").exists()
    assert pruned() == []


@pytest.mark.parametrize("status", ["failed", "interrupted", "preempted"])
def test_a_run_that_stopped_loses_its_older_checkpoint(made: Any, status: str) -> None:
    run = made.run(RUN, status)
    checkpoints(run, "last.ckpt", "previous.ckpt", "best.ckpt")

    assert pruned("dry=false") == [f"demo/generation/{RUN}/checkpoints/previous.ckpt"]
    assert {path.name for path in run.glob("checkpoints/*.ckpt")} == {"last.ckpt", "best.ckpt"}


def test_the_older_checkpoint_stays_where_the_last_is_damaged(made: Any) -> None:
    run = made.run(RUN, "failed")
    checkpoints(run, "last.ckpt", "previous.ckpt")
    (run / "checkpoints" / "last.ckpt").write_text("half")

    assert pruned() == []


def test_a_run_that_failed_before_its_first_checkpoint_goes(made: Any) -> None:
    run = made.run(RUN, "failed")

    assert pruned("dry=false") == [f"demo/generation/{RUN}"]
    assert not run.exists()


def test_running_waiting_and_preempted_runs_are_not_touched(made: Any, slurm: Any) -> None:
    running, waiting, preempted = "b" * 12, "c" * 12, "d" * 12
    beat = {"host": "far", "pid": 1, "step": 1, "phase": "data"}
    checkpoints(made.run(running, "running", heartbeat__rank_0=beat), "last.ckpt", "previous.ckpt")
    made.run(waiting, "failed")
    folder = made.run(preempted, "preempted")
    checkpoints(folder, "last.ckpt", "previous.ckpt")
    (folder / "slurm").mkdir()
    (folder / "slurm" / "12_1.restart0.out").touch()
    line = {"job": "12", "where": "slurm", "tasks": {"0": waiting, "1": preempted}}
    made.sweep("one", {"x": [("generation", waiting)], "y": [("generation", preempted)]}, [line])
    slurm(squeue="12|0|PENDING|n/a|Priority|bdg|\n12|1|PENDING|n/a|BeginTime|bdg|\n")

    assert pruned() == []


def test_a_run_that_somebody_locks_is_left_alone(made: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = made.run(RUN)
    checkpoints(run, "last.ckpt")
    with (run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pruned() == []

        monkeypatch.setattr("bdg.commands.prune.is_locked", lambda folder: False)  # it is locked after the look
        assert pruned("dry=false") == [f"demo/generation/{RUN}/checkpoints"]

    assert "left alone, as somebody works there now" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_nothing_behind_a_link_is_deleted(made: Any, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "last.ckpt").write_text("mine")
    (made.run(RUN) / "checkpoints").symlink_to(outside)
    (made.project / "linked").symlink_to(tmp_path / "stages")
    (tmp_path / "stages" / ("b" * 12)).mkdir(parents=True)
    (tmp_path / "stages" / ("b" * 12) / "STATUS").write_text("failed\n")

    assert pruned("dry=false") == []
    assert (outside / "last.ckpt").exists()


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(made: Any, tmp_path: Path, capsys: Any) -> None:
    run = made.run(RUN)
    checkpoints(run, "last.ckpt")
    (run / "lock").symlink_to(tmp_path / "owned")

    assert pruned("dry=false") == [f"demo/generation/{RUN}/checkpoints"]
    assert not (tmp_path / "owned").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert "or their lock is a link" in capsys.readouterr().out


def test_code_goes_when_no_job_runs_from_it(made: Any, slurm: Any) -> None:
    line = {"job": "12", "where": "slurm", "tasks": {"0": RUN}, "script": "jobs/generation-1.sbatch"}
    sweep = made.sweep("one", {"x": [("generation", RUN)]}, [line])
    (sweep / "jobs").mkdir()
    (sweep / "jobs" / "generation-1.sbatch").write_text(f"cd {sweep}/frozen/{'1' * 12}\n")
    for name in ("1" * 12, "2" * 12, "3" * 12):
        (sweep / "frozen" / name).mkdir(parents=True)
        if not name.startswith("3"):  # which is new
            os.utime(sweep / "frozen" / name, (0, 0))

    slurm(squeue="12|0|PENDING|n/a|Priority|bdg|\n")
    assert pruned() == [f"demo/sweeps/one/frozen/{'2' * 12}"]
    slurm()
    assert pruned() == [f"demo/sweeps/one/frozen/{'2' * 12}"]
    slurm(squeue="other|N/A|RUNNING|n1|None|x|\n")
    assert pruned("dry=false") == [f"demo/sweeps/one/frozen/{name}" for name in ("1" * 12, "2" * 12)]
    assert [path.name for path in (sweep / "frozen").iterdir()] == ["3" * 12]


def test_a_file_of_two_names_counts_once(made: Any, capsys: Any) -> None:
    run = made.run(RUN)
    checkpoints(run, "last.ckpt", size=300_000)
    os.link(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")

    pruned()

    assert "2.7 MB can be deleted" in capsys.readouterr().out
