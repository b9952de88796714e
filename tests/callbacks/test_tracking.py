"""A run in W&B is one run and one curve: against what wandb really writes."""

import csv
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from callbacks.about import axes, common, describe, flat
from callbacks.tensorboard_log import TensorBoardLog
from callbacks.trackio_log import TrackioLog
from callbacks.wandb_file import STEP, Fragment, Logged, fragments, logged, records
from callbacks.wandb_log import WandbLog, choose_mode, missed, unreachable
from jobs.watched import Watched

IDENTITY = "0123456789ab"
SECRET = "5ecret" * 7
CONFIG = {
    "stage": {"name": "bridging", "lambda": 0.05},
    "glcm": {"angles": [0, 1, 2], "scales": [1, 2, 6]},
    "data": {"shards": None},
    "inherit": {"parent": None},
}

HEADER = b":W&B\xe1\xbe\x00"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as training opens it."""
    folder = tmp_path / "runs" / "demo" / "bridging" / IDENTITY
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    words = ["stage=bridging", "experiment=demo", "root=runs", "stage.lambda=0.05"]
    facts = {"identity": IDENTITY, "parents": [], "data_digest": "d" * 64, "code": {"commit": "c"}, "words": words}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


# --- online or offline ---


@pytest.mark.parametrize(
    ("wanted", "environ", "waits", "problem", "mode"),
    [
        ("auto", {"WANDB_MODE": "disabled"}, False, None, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, False, None, "offline"),
        ("online", {}, True, "no answer", "online"),
        ("auto", {}, False, None, "online"),
        ("auto", {}, False, "no answer", "offline"),
        ("auto", {}, True, None, "offline"),
    ],
)
def test_the_mode_is_the_environments_or_the_configs_or_what_can_be(
    wanted: str, environ: dict[str, str], waits: bool, problem: str | None, mode: str
) -> None:
    assert choose_mode(wanted, environ, waits, lambda: problem)[0] == mode


def test_without_a_key_the_server_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert unreachable("http://localhost:1") == "nobody is logged in, see wandb login"

    (tmp_path / "netrc").write_text("machine localhost:1 login user password 0\n")
    assert unreachable("http://localhost:1") == "localhost does not answer"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger.wandb.mode=of: choose one of auto, online, offline"):
        WandbLog("folder", "project", "bridging", mode="of")


def test_without_wandb_it_is_said_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = WandbLog(str(run), "demo", "bridging")
    with caplog.at_level(logging.INFO, "bdg"):
        logger.log_metrics({"loss/total": 1.0}, 0)
        logger.log_image("val/panel", ["missing.jpg"], 0)
        logger.publish(run / "weights" / "ema.safetensors")
        logger.finalize("success")

    assert caplog.messages == ["W&B is not installed: the training goes on without it, pip install wandb"]


def test_what_wandb_cannot_do_is_said_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("the service has died\nand more")

    logger = WandbLog(str(run), "demo", "bridging")
    logger._begun, logger._run = True, Broken()
    for step in range(3):
        logger.log_metrics({"loss/total": 1.0}, step)

    assert caplog.messages == ["W&B: the service has died; the training goes on, its own files have all"]


# --- what a run is ---


def test_the_config_is_flat_and_has_numbers_for_axes() -> None:
    assert flat(CONFIG)["stage/lambda"] == 0.05
    assert axes(CONFIG) == {"lambda": 0.05, "glcm/num_angles": 3, "glcm/num_scales": 3, "glcm/max_scale": 6}
    assert axes({"stage": {}, "glcm": {}}) == {}


def test_a_run_of_no_sweep_is_called_by_its_command(run: Path) -> None:
    about = describe(run, "bridging")

    assert (about["name"], about["group"]) == ("bridging experiment=demo stage.lambda=0.05 012345", None)
    assert about["config"]["data/digest"] == "d" * 64
    assert about["config"]["code/commit"] == "c"


def test_a_run_of_two_sweeps_is_in_the_group_of_the_older_and_has_both_as_tags(run: Path) -> None:
    cells = [{"name": "lambda=0.05,scales=1"}, {"name": "lambda=0.05,scales=1-2"}, {"name": "lambda=0.1,scales=1"}]
    for name, made in (("second", "2026-02"), ("first", "2026-01")):
        folder = run.parents[1] / "sweeps" / name
        folder.mkdir(parents=True)
        plan = {"made": made, "cells": cells, "tasks": [{"identity": IDENTITY, "cells": [0, 1]}]}
        (folder / "plan.json").write_text(json.dumps(plan))
    (run.parents[1] / "sweeps" / "broken").mkdir()
    (run.parents[1] / "sweeps" / "broken" / "plan.json").write_text(f"{{{IDENTITY}")
    about = describe(run, "bridging")

    assert (about["group"], about["tags"]) == ("first", ["first", "second"])
    assert about["name"] == "bridging lambda=0.05 012345"
    assert common(cells, [{"identity": IDENTITY, "cells": [0, 2]}], IDENTITY) == "scales=1"


def test_runs_that_differ_in_the_seed_alone_have_one_setting(run: Path) -> None:
    folder = run.parents[1] / "sweeps" / "seeds"
    folder.mkdir(parents=True)
    cells = [{"name": f"lambda={value},seed={seed}"} for value in (0.05, 0.1) for seed in (0, 1)]

    def setting(*needed: int) -> str:
        plan = {"made": "2026", "cells": cells, "tasks": [{"identity": IDENTITY, "cells": needed}]}
        (folder / "plan.json").write_text(json.dumps(plan))
        return describe(run, "bridging")["config"]["setting"]

    assert [setting(k) for k in range(4)] == ["lambda=0.05", "lambda=0.05", "lambda=0.1", "lambda=0.1"]
    assert setting(0, 2) == "as it is"  # a generation that both lambdas share


# --- one curve ---


def test_a_step_is_new_once_but_a_score_that_a_killed_validation_did_not_log_is_still_new() -> None:
    before = Logged()
    before.add(9, ["loss/total"])

    assert before.new(8, {"loss/total": 1.0}) == {}
    assert before.new(9, {"loss/total": 1.0, "val/mean/psnr": 2.0}) == {"val/mean/psnr": 2.0}
    assert before.new(10, {"loss/total": 1.0}) == {"loss/total": 1.0}


def test_what_a_killed_start_did_not_hand_over_is_in_the_files_of_the_run(run: Path) -> None:
    for version, lines in (("version_0", "0,3.0,\n1,2.0,\n2,9.0,\n"), ("version_1", "2,1.0,\n2,,20.5\n3,0.")):
        (run / "logs" / version).mkdir(parents=True)
        (run / "logs" / version / "metrics.csv").write_text(f"step,loss/total,val/mean/psnr\n{lines}")

    assert missed(run, 1) == [
        (1, {"loss/total": 2.0}),
        (2, {"loss/total": 1.0, "val/mean/psnr": 20.5}),
        (3, {"loss/total": 0.0}),
    ]


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as internal

    texts = ["a" * 10, "b" * 50_000, "c" * 40_000]  # in one block, over two, over three
    path = tmp_path / "run.wandb"
    path.write_bytes(b"".join(blocks([internal.Record(uuid=text).SerializeToString() for text in texts])))  # type: ignore[attr-defined]
    assert [record.uuid for record in records(path)] == texts

    path.write_bytes(path.read_bytes()[:-1])
    assert [record.uuid for record in records(path)] == texts[:2]
    assert list(records(tmp_path / "none.wandb")) == []


def blocks(payloads: list[bytes], block: int = 32768) -> Iterator[bytes]:
    """LevelDB's log, after W&B's header: (checksum, length, kind) and a piece; kinds: whole, first, middle, last."""
    at = 7
    yield b":W&B\xe1\xbe\x00"
    for payload in payloads:
        begun = False
        while True:
            if (left := block - at % block) < 7:
                yield bytes(left)
                at, left = at + left, block
            piece, payload = payload[: left - 7], payload[left - 7 :]
            kind = (3 if payload else 4) if begun else (2 if payload else 1)
            yield bytes(4) + len(piece).to_bytes(2, "little") + bytes([kind]) + piece
            at, begun = at + 7 + len(piece), True
            if not payload:
                break


# --- online: the one seam is wandb.init ---


class Server:
    """What wandb.init gives for a run that the server knows."""

    url = "https://wandb.example/demo"

    def __init__(self, summary: dict[str, Any]) -> None:
        self.summary, self.rows, self.artifacts, self.ended = summary, [], [], None
        self.asked: dict[str, Any] = {}

    def __call__(self, **asked: Any) -> "Server":
        self.asked = asked
        return self

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, row: dict[str, Any], step: int | None) -> None:
        self.rows.append((step, row))

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact.name)

    def _log_artifact(self, artifact: Any, **_: Any) -> None:
        self.artifacts.append(artifact.name)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


def test_online_the_curve_goes_on_where_the_server_has_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({STEP: 9, "best/mean/psnr": 30.0})
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.init", server)
    logger = WandbLog(str(run), "demo", "bridging", mode="online")
    logger.log_metrics({"loss/total": 2.0}, 8)
    logger.log_metrics({"loss/total": 1.0}, 10)
    logger.log_metrics({"val/mean/psnr": 29.0}, 10)
    logger.log_metrics({"val/mean/psnr": 31.0, "val/rain/psnr": 33.0}, 20)
    logger.publish(run / "weights" / "ema.safetensors")

    asked = server.asked
    assert (asked["id"], asked["resume"], asked["mode"], asked["job_type"]) == (IDENTITY, "allow", "online", "bridging")
    assert [row[STEP] for _, row in server.rows] == [10, 10, 20]
    assert all(step is None for step, _ in server.rows)  # the server's own count goes on
    assert server.summary == {STEP: 9, "best/mean/psnr": 31.0, "best/rain/psnr": 33.0, "best/step": 20}
    assert server.artifacts == ["data-dddddddddddd", f"bridging-{IDENTITY}"]
    assert server.ended == 0


# --- other loggers ---


@pytest.mark.parametrize(("make", "package"), [(TensorBoardLog, "tensorboard"), (TrackioLog, "trackio")])
def test_a_logger_whose_package_is_missing_says_what_to_install(make: Any, package: str, run: Path) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"logger={package} needs .* pip install {package}"):
        make(str(run), *["demo", "bridging"][: 2 * (make is TrackioLog)])


def test_trackio_is_told_name_config_and_steps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its documented interface; it is not installed here."""
    calls: list[Any] = []
    fake = SimpleNamespace(
        init=lambda **asked: calls.append(asked),
        log=lambda row, step: calls.append((row, step)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr("callbacks.trackio_log.find_spec", lambda name: True)
    logger = TrackioLog(str(run), "demo", "bridging")
    logger.log_metrics({"loss/total": 1.0}, 3)
    logger.finalize("success")

    asked, *rest = calls
    assert (asked["project"], asked["name"], asked["resume"]) == ("demo", f"bridging {IDENTITY}", "allow")
    assert asked["config"]["lambda"] == 0.05
    assert rest == [({"loss/total": 1.0}, 3), "finish"]


# --- offline: what wandb really writes ---


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that had to leave, was killed, and then was rolled back as its last checkpoint was damaged."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("tracking")
    photographs = folder / "photographs"
    bdg = [sys.executable, "-m", "bdg"]
    subprocess.run([*bdg, "pack", "pkg://datamodules/photographs", photographs, "parts=photographs"], check=True)
    train = [*bdg, "train", "experiment=demo_smoke", "stage=generation", "logger=wandb", f"root={folder}/runs"]
    train += ["max_steps.generation=24", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1"]
    train += [f"data.root={photographs}", "data.num_workers=0", "callbacks.checkpoint.every_n_steps=2"]
    train += [f"+callbacks.record={{_target_: callbacks.record.Record, folder: {folder}/record}}"]
    train += [f"trust=['https://me:{SECRET}@server/']"]  # a secret in the command and in the config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", SECRET)
        stop_twice(train, folder)
    (run,) = folder.glob("runs/*/generation/*")
    return run


def stop_twice(train: list[Any], folder: Path) -> None:
    for step, signum in ((6, signal.SIGTERM), (13, signal.SIGKILL)):
        watched = Watched(train, folder / "record", folder / "log")
        assert watched.wait_for(lambda fact, step=step: fact.get("step", 0) >= step), watched.tail()
        watched.kill([watched.process.pid] if signum == signal.SIGTERM else None, signum)
        watched.wait()
    (run,) = folder.glob("runs/*/generation/*")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    watched = Watched(train, folder / "record", folder / "log")
    assert watched.wait() == 0, watched.tail()


def histories(run: Path) -> list[dict[str, Any]]:
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for fragment in fragments(run)
        for record in records(fragment.file)
        if record.HasField("history")
    ]


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fragment in fragments(run):
        for record in records(fragment.file):
            found |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
    return found


@pytest.mark.slow
def test_all_starts_are_one_run(broken: Path) -> None:
    begun = [record.run for f in fragments(broken) for record in records(f.file) if record.HasField("run")]

    assert len(fragments(broken)) == 3
    assert {(run.run_id, run.project, run.job_type, run.resumed or run.display_name) for run in begun} == {
        (broken.name, "demo_smoke", "generation", begun[-1].display_name)
    }


@pytest.mark.slow
def test_all_starts_are_one_curve(broken: Path) -> None:
    rows = histories(broken)
    numbers = [row["_step"] for row in rows]
    steps = [row[STEP] for row in rows]

    assert numbers == sorted(set(numbers))
    assert steps == sorted(steps)
    losses = [row[STEP] for row in rows if "loss/total" in row]
    assert losses == sorted(set(losses))
    assert len(set(range(24)) - set(losses)) <= 1  # Lightning writes no line of the step after which a run leaves
    assert [row[STEP] for row in rows if "val/mean/psnr" in row] == [5, 11, 17, 23]
    assert logged(broken).step == 23


@pytest.mark.slow
def test_the_curve_is_that_of_the_runs_own_files(broken: Path) -> None:
    losses = {}
    for path in sorted(broken.glob("logs/version_*/metrics.csv")):
        with path.open() as file:
            losses |= {int(row["step"]): float(row["loss/total"]) for row in csv.DictReader(file) if row["loss/total"]}

    assert {row[STEP]: row["loss/total"] for row in histories(broken) if "loss/total" in row} == losses


@pytest.mark.slow
def test_each_validation_has_one_panel_as_jpeg(broken: Path) -> None:
    rows = [row for row in histories(broken) if "val/panel._type" in row]

    assert [row[STEP] for row in rows] == [5, 11, 17, 23]
    assert {(row["val/panel._type"], row["val/panel.format"]) for row in rows} == {("image-file", "jpg")}
    for fragment in fragments(broken):
        assert all(path.suffix == ".jpg" for path in (fragment.folder / "files" / "media").rglob("*.*"))


@pytest.mark.slow
def test_config_and_lineage_are_there_and_no_secret(broken: Path) -> None:
    newest = [list(records(fragment.file)) for fragment in fragments(broken)][-1]
    config = {item.key: json.loads(item.value_json) for record in newest for item in record.run.config.update}
    artifacts = [record.artifact for record in newest if record.HasField("artifact")]

    assert config["run/identity"] == broken.name
    assert {"lambda", "glcm/num_angles", "glcm/max_scale", "data/digest", "versions/torch", "hardware/cpus"} <= set(
        config
    )
    assert [(a.type, a.use_after_commit) for a in artifacts] == [("dataset", True), ("weights", False)]
    assert [entry.ref for entry in artifacts[1].manifest.contents] == [
        (broken / "weights" / "ema.safetensors").resolve().as_uri()
    ]
    files = [path for path in (broken / "wandb").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_summary_has_the_best_validation(broken: Path) -> None:
    scores = {row[STEP]: row["val/mean/psnr"] for row in histories(broken) if "val/mean/psnr" in row}
    best = max(scores, key=scores.__getitem__)
    found = summary(broken)

    assert (int(found["best/step"]), float(found["best/mean/psnr"])) == (best, scores[best])


@pytest.mark.slow
def test_offline_starts_wait_to_be_sent(broken: Path) -> None:
    first, killed, last = fragments(broken)
    assert first.waits
    assert last.waits
    assert killed.waits == (killed.file.stat().st_size > len(HEADER))  # a kill may leave nothing but the header


def test_a_start_without_a_block_has_nothing_to_send(tmp_path: Path) -> None:
    fragment = Fragment(tmp_path, True, "20260101_000000", IDENTITY)
    fragment.file.write_bytes(HEADER)

    assert not fragment.waits
