"""`bdg train` on the smallest demo: what it leaves, what it finds again, what it refuses."""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bdg.cli import main
from bdg.commands.chain import stage_link
from bdg.commands.compose import compose
from bdg.commands.request import Request
from bdg.commands.resume import recorded
from bdg.commands.train import _check_folder, _header, _near, _open
from jobs.run import Run

SMALL = ("experiment=demo_smoke", "max_steps={generation: 3, bridging: 3, restoration: 3}", "data.num_workers=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed photographs and a trained generation stage."""
    folder = tmp_path_factory.mktemp("train")
    assert main(["pack", "pkg://datamodules/photographs", f"{folder}/photographs", "parts=photographs"]) == 0
    assert train(folder, "stage=generation", f"json={folder}/generation.json") == 0
    return folder


def train(folder: Path, *overrides: str) -> int:
    return main(["train", *SMALL, f"data.root={folder}/photographs", f"root={folder}/runs", *overrides])


def run_of(folder: Path, stage: str, project: str = "demo_smoke") -> Path:
    (run,) = (folder / "runs" / project / stage).iterdir()
    return run


pytestmark = pytest.mark.filterwarnings("ignore")  # a user's process, whose warnings are not ours to raise


def test_a_finished_run_holds_weights_scores_and_where_it_came_from(folder: Path) -> None:
    run = run_of(folder, "generation")

    assert (run / "STATUS").read_text() == "done\n"
    assert "network.init_conv.weight" in load_file(run / "weights" / "ema.safetensors")
    assert json.loads((folder / "generation.json").read_text())["metrics"]["val/prior_noise_loss"] > 0
    assert json.loads((run / "manifest.json").read_text())["data_digest"]


def test_the_same_command_again_finds_the_work_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_of(folder, "generation") / "weights" / "ema.safetensors").stat().st_mtime_ns

    assert train(folder, "stage=generation") == 0

    assert (run_of(folder, "generation") / "weights" / "ema.safetensors").stat().st_mtime_ns == before


def test_a_stage_inherits_and_reports_it(folder: Path) -> None:
    assert train(folder, "stage=bridging") == 0

    report = json.loads((run_of(folder, "bridging") / "inherit.json").read_text())
    assert all(name.startswith("network.") for name in report["inherited"])
    assert all(name.startswith("discriminator.") for name in report["fresh"])
    assert report["dropped"] == {}


@pytest.mark.slow
def test_a_step_in_parts_is_the_step(folder: Path) -> None:
    found = []
    for parts in ("null", "2"):
        assert train(folder, "stage=generation", f"project=parts_{parts}", f"data.micro_batch={parts}") == 0
        (run,) = folder.glob(f"runs/parts_{parts}/generation/*")
        found.append((run.name, json.loads((run / "metrics.json").read_text())))

    (one, whole), (other, in_parts) = found
    assert one == other  # what a device takes at once does not define a run
    assert in_parts == pytest.approx(whole, rel=1e-3)  # but for the rounding of sums


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=restoration", "stage.lambda=0.3"], r"make it with: bdg train stage=bridging .*inherit.from=none"),
        (
            ["stage=generation", "max_steps.generation=20", "project=twenty"],
            r"divides by zero at trainer.max_steps=20, .*take a step more",
        ),
        (["stage=bridging", "inherit.from=nowhere"], r"inherit.from=nowhere: there are no weights"),
        (["stage=bridging", "ckpt_path=nowhere.ckpt"], r"ckpt_path=nowhere.ckpt: no such file"),
        (["stage=bridging", "network=T", "inherit.from={run}"], r"do not fit this stage: .*Give both the same network"),
        (["stage=bridging", "inherit.from={cut}"], r"inherit.from=.*is no checkpoint, or cut off"),
        (["stage=generation", "seed=5", "ckpt_path={cut}"], r"is no checkpoint, or cut off"),
        (["stage=generation", "seed=5", "ckpt_path={end}"], r"is at step 3 of 3: nothing to train"),
        (["stage=bridging", "glcm.levels=1"], r"levels=1"),
        (
            ["seed=7", "data.micro_batch=3"],
            r"data.micro_batch=3: of data.batch_size=4 each of 1 devices has 4, .* 1, 2, 4",
        ),
        (["seed=7", "+trainer.accumulate_grad_batches=2"], r"follows from data.batch_size, .* and data.micro_batch"),
        (["stage=bridging", "seed=6", "stages=[generation]"], r"stage=bridging is not in stages"),
        (
            ["stage=generation", "identity='012345678901'"],
            r"identity=012345678901 was planned, but this comes to generation .*: data or code .*same bdg sweep again",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_clear_error(
    folder: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    cut, end = folder / "cut.ckpt", folder / "end.ckpt"
    cut.write_bytes(b"PK half a file")
    torch.save({"global_step": 3, "state_dict": {}}, end)
    names = {"run": run_of(folder, "generation"), "cut": cut, "end": end}
    given = [o.format(**names) if "{" in o else o for o in overrides]

    status = train(folder, *given)

    error = capsys.readouterr().err.replace("\n", " ")
    assert status == 1
    assert "Traceback" not in error
    assert re.search(message, error), error


def test_the_identity_that_was_planned_is_fine_when_it_comes_out(folder: Path) -> None:
    assert train(folder, "stage=generation", f"identity='{run_of(folder, 'generation').name}'") == 0


def test_a_job_of_another_shape_ends_before_anything_is_built(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "4", "NNODES": "2", "NTASKS_PER_NODE": "2", "STEP_ID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("bdg.commands.train.build", lambda *arguments, **options: pytest.fail("something was built"))

    assert train(folder, "stage=generation", "seed=8", "trainer.devices=2") == 1
    assert "but this job has 2 nodes with 4 processes in all: give cluster.nodes=2" in capsys.readouterr().err


def test_what_is_no_folder_cannot_be_copied_to_a_nodes_disk() -> None:
    config = compose("train", ["data=shards", "data.shards=s3://x/a.tar", "+cluster.scratch=/tmp"])

    with pytest.raises(
        ValueError, match=r"cluster.scratch=/tmp takes a copy of the folder data.root, which is None: give"
    ):
        _near(config)


def test_training_from_the_nodes_own_disk_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    assert train(folder, "stage=generation", "project=near", f"+cluster.scratch={tmp_path}") == 0

    (copy,) = tmp_path.glob("bdg-*")
    (near,) = (folder / "runs" / "near" / "generation").iterdir()
    far = run_of(folder, "generation")
    assert [*copy.glob("train-*.tar")]
    assert near.name == far.name
    assert f"{tmp_path}/bdg-" not in (near / "config.yaml").read_text()
    assert (near / "metrics.json").read_text() == (far / "metrics.json").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc/self/maps")
def test_a_look_at_a_checkpoint_does_not_keep_its_file(tmp_path: Path) -> None:
    """It would fill the disk: the file is replaced while the training goes on."""
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 7, "ranks": 2, "state_dict": {"w": torch.zeros(100_000)}}, path)

    assert _header(path) == {"global_step": 7, "ranks": 2}
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_weights_alone_are_nothing_to_go_on_with(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights\.ckpt holds weights only, .*inherit\.from="):
        _header(tmp_path / "weights.ckpt")


def test_a_run_killed_in_its_last_validation_begins_with_it(folder: Path) -> None:
    done = run_of(folder, "generation")
    weights, scores = load_file(done / "weights" / "ema.safetensors"), json.loads((done / "metrics.json").read_text())
    (done / "STATUS").write_text("running\n")
    (done / "metrics.json").unlink()
    (done / "weights" / "ema.safetensors").unlink()
    best = (done / "checkpoints" / "best.ckpt").read_bytes()
    (done / "checkpoints" / "best.ckpt").unlink()

    assert train(folder, "stage=generation") == 0

    assert (done / "checkpoints" / "best.ckpt").read_bytes() == best
    again = load_file(done / "weights" / "ema.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    assert json.loads((done / "metrics.json").read_text()) == pytest.approx(scores)
    assert "after step 3 of 3" in (done / "README.md").read_text()


def test_a_resumed_run_needs_its_parent_no_more(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ("project=orphan", "callbacks.checkpoint.every_n_steps=1")
    for stage in ("generation", "bridging"):
        assert train(folder, f"stage={stage}", *words) == 0
    run = run_of(folder, "bridging", "orphan")
    parent = run_of(folder, "generation", "orphan") / "weights" / "ema.safetensors"
    told = (run / "inherit.json").stat().st_mtime_ns
    (run / "STATUS").write_text("running\n")
    for lost in ("checkpoints/last.ckpt", "weights/ema.safetensors", "metrics.json"):
        (run / lost).unlink()
    parent.rename(parent.with_suffix(".away"))
    caplog.clear()

    assert train(folder, "stage=bridging", *words) == 0
    assert (run / "inherit.json").stat().st_mtime_ns == told
    assert "inherit from" not in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_what_another_process_did_while_one_waited_is_not_lost(
    finished: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("stage=generation", f"project=waited_{finished}", "callbacks.checkpoint.every_n_steps=1")
    assert train(folder, *words) == 0
    run = run_of(folder, "generation", f"waited_{finished}")
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    names = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "weights/ema.safetensors")
    for name in names:
        (run / name).unlink()
    (run / "STATUS").write_text("running\n")
    locked = Run.locked

    @contextmanager
    def waited(self: Run) -> Iterator[None]:
        for path, content in kept.items():
            if finished or path.name not in ("STATUS", "ema.safetensors", "metrics.json"):
                path.write_bytes(content)
        with locked(self):
            yield

    monkeypatch.setattr(Run, "locked", waited)
    caplog.clear()
    assert train(folder, *words) == 0
    assert "from scratch" not in caplog.text
    assert (run / "STATUS").read_text() == "done\n"
    assert ("goes on from" in caplog.text) == (not finished)
    assert (run / "weights" / "ema.safetensors").read_bytes() == kept[run / "weights" / "ema.safetensors"]


def test_the_last_step_is_saved_and_validated_wherever_it_falls(folder: Path) -> None:
    words = ("stage=generation", "project=odd", "trainer.val_check_interval=2", f"json={folder}/odd.json")
    assert train(folder, *words) == 0
    run = run_of(folder, "generation", "odd")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    found = json.loads((folder / "odd.json").read_text())["metrics"]
    with next(run.rglob("metrics.csv")).open() as file:
        assert [line["step"] for line in csv.DictReader(file) if line["val/mean/psnr"]] == ["1", "2"]  # counted from 0
    (run / "STATUS").write_text("running\n")
    for path in (run / "weights" / "ema.safetensors", run / "metrics.json"):
        path.unlink()
    assert train(folder, *words) == 0  # which validates what the checkpoint of the last step holds
    assert json.loads((folder / "odd.json").read_text())["metrics"] == pytest.approx(found)


def test_weights_that_cannot_be_written_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "ema.safetensors")

    words = ("stage=generation", "project=full")
    with monkeypatch.context() as patch:
        patch.setattr("bdg.commands.train.save_weights", full)
        assert train(folder, *words) == 1
    run = run_of(folder, "generation", "full")
    assert (run / "STATUS").read_text() == "failed\n"
    assert "No space left on device: 'ema.safetensors'" in (run / "README.md").read_text()
    assert train(folder, *words) == 0
    assert (run / "STATUS").read_text() == "done\n"


def test_a_run_with_secrets_keeps_none_and_goes_on(folder: Path) -> None:
    secrets = ['+hf_token="s3cr3tAAAA"', "+server={password: s3cr3tBBBB}", "+my_tokens=[s3cr3tCCCC,s3cr3tDDDD]"]
    words = (*SMALL, f"data.root={folder}/photographs", f"root={folder}/runs", "project=secrets", *secrets)
    link = stage_link(Request("train", words), "generation")

    for story in ("begins", "goes on"):
        _open(link, story)
        _check_folder(link)

    manifest = json.loads((link.run.folder / "manifest.json").read_text())
    for begun in (manifest, *manifest["resumed"]):
        assert begun["words"][-3:] == ["+hf_token=***", "+server=***", "+my_tokens=***"]
    assert [path for path in link.run.folder.iterdir() if "s3cr3t" in path.read_text()] == []
    with pytest.raises(ValueError, match="holds no secrets, and hf_token of its command is one"):
        recorded(manifest, link.run.folder, "train")


def test_a_folder_that_another_config_began_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(folder, "generation")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("crop: 32", "crop: 31"))
    (run / "STATUS").write_text("running\n")

    status = train(folder, "stage=generation")
    (run / "config.yaml").write_text(config)
    (run / "STATUS").write_text("done\n")

    assert status == 1
    assert "was begun with another config, which differs in data.crop: 31 and 32" in capsys.readouterr().err
