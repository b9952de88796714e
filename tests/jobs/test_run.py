import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdg.commands.chain import resolved
from bdg.commands.request import Request
from jobs.run import Run, definition, differences, identity, write_text

STAGES = ("generation", "bridging", "restoration")


def defined(stage: str, *overrides: str) -> dict[str, Any]:
    config = Request("train", ("data.root=photographs", f"stage={stage}", *overrides)).compose()
    config.run_folder = ""
    return definition(resolved(config))


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=1", STAGES),
        ("network=S", STAGES),
        ("diffusion.time=index", STAGES),
        ("diffusion.schedule.num_steps=100", STAGES),
        ("data.crop=64", STAGES),
        ("trainer.max_steps=7", STAGES),
        ("trainer.precision=bf16-mixed", STAGES),
        ("callbacks.ema.decay=0.9", STAGES),
        ("stage.optimizer.lr=1e-3", STAGES),
        ("max_steps.bridging=7", ("bridging",)),
        ("stage.lambda=0.05", ("bridging", "restoration")),
        ("stage.weights.classify=0", ("bridging",)),
        ("stage.terms.negative.literal=true", ("restoration",)),
        ("stage.terms.bridge.targets=class", ("bridging", "restoration")),
        ("stage.estimate=residual", ("bridging", "restoration")),
        ("glcm.scales=[1]", ("bridging", "restoration")),
        ("degradation=rain", ("bridging", "restoration")),
        ("trainer.devices=2", ()),
        ("logger=none", ()),
        ("sampler=ddpm", ()),
        ("protocol=y", ()),
        ("project=other", ()),
        ("callbacks.checkpoint.every_n_steps=3", ()),
        ("data.quotas={rain:1}", STAGES),
        ("data.window=8", STAGES),
        ("data.reader=stream", STAGES),
        ("data.num_workers=3", ()),
        ("data.micro_batch=2", ()),
        ("data.cache=elsewhere", ()),
        ("data.cache_gb=7", ()),
        ("data.on_error=skip", ()),
    ],
)
def test_changing_a_key_changes_exactly_the_stages_that_read_it(override: str, stages: tuple[str, ...]) -> None:
    changed = tuple(stage for stage in STAGES if defined(stage) != defined(stage, override))

    assert changed == stages


def test_the_order_of_degradations_is_part_of_the_identity() -> None:
    """It fixes the labels."""
    one, other = (defined("bridging", f"degradation=[{order}]") for order in ("rain,blur", "blur,rain"))

    assert identity(one, None, "data") != identity(other, None, "data")


@pytest.mark.parametrize("override", ["data.num_workers=3", "data.micro_batch=2", "trainer.devices=2"])
def test_who_reads_which_shards_counts_where_they_are_read_forwards(override: str) -> None:
    assert defined("generation", "data.reader=stream") != defined("generation", "data.reader=stream", override)


def test_generation_conditioned_on_x_lq_is_another_run() -> None:
    assert defined("generation") != defined("generation", "stage.condition=x_lq")


def test_identity_depends_on_definition_parent_and_data() -> None:
    ours = identity({"seed": 0}, None, "data")

    assert ours == identity({"seed": 0}, None, "data")
    others = [identity({"seed": 1}, None, "data"), identity({"seed": 0}, "p", "data"), identity({"seed": 0}, None, "d")]
    assert len({ours, *others}) == 4


def test_a_run_is_done_only_with_its_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, "project", "generation", "0123456789ab")
    assert run.status == "new"

    run.set_status("done")
    assert not run.done

    write_text(run.weights, "tensors")
    assert run.done


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "first")

    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "second")

    assert path.read_text() == "first"


def test_jobs_start_without_torch() -> None:
    code = "import json, sys, jobs.run; print(json.dumps([m for m in sys.modules if m in ('torch', 'lightning', 'hydra')]))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout

    assert json.loads(loaded) == []


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.run.LOCK_PATIENCE_S", 0.0)
    run = Run(tmp_path, "demo", "bridging", "abc")
    other = f"run.Run(run.Path({str(tmp_path)!r}), 'demo', 'bridging', 'abc').locked().__enter__()"
    command = [sys.executable, "-c", f"from jobs import run; run.LOCK_PATIENCE_S = 0.0; {other}"]

    with run.locked():
        held = subprocess.run(command, capture_output=True, text=True)
    free = subprocess.run(command, capture_output=True, text=True)

    assert f"is being trained by process {os.getpid()} on" in held.stderr
    assert free.returncode == 0


def test_the_readme_of_a_run_grows_by_a_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "demo", "bridging", "abc")
    run.tell("begins")
    run.tell("done")

    title, _, first, second = (run.folder / "README.md").read_text().splitlines()
    assert title == "# bridging abc"
    assert first.endswith("begins")
    assert second.endswith("done")


def test_differences_name_the_keys() -> None:
    assert differences({"a": {"b": 1, "c": {}}, "d": [1]}, {"a": {"b": 2, "c": {}}, "d": [1]}) == ["a.b: 1 and 2"]
    assert differences({"a": 1}, {}) == ["a: 1 and missing"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_a_full_disk_does_not_take_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / f".STATUS.{os.getpid()}").symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"No space left on device: '.*STATUS'"):
        write_text(tmp_path / "STATUS", "running")
    assert list(tmp_path.iterdir()) == []
