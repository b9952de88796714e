"""`bdg resume`: the same command again where it makes the same run, and a clear no where it would not."""

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from bdg.cli import main
from bdg.commands.chain import Link, stage_link
from bdg.commands.request import Request
from bdg.commands.resume import check_trust, configs

SMALL = ("experiment=demo_smoke", "max_steps.generation=3", "data.num_workers=0")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "photographs"
    assert main(["pack", "pkg://datamodules/photographs", str(folder), "parts=photographs"]) == 0
    return folder


@pytest.fixture
def link(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    """A run that has just begun, in the working folder."""
    monkeypatch.chdir(tmp_path)
    link = stage_link(Request("train", (*SMALL, f"data.root={photographs}", "json=x.json")), "generation")
    link.run.folder.mkdir(parents=True)
    (link.run.folder / "config.yaml").write_text(OmegaConf.to_yaml(link.config, resolve=True))
    describe(link, link.words)
    return link


def describe(link: Link, words: Any, **more: Any) -> None:
    about = {"words": words, "cwd": os.getcwd(), "data_digest": link.data} | more
    (link.run.folder / "manifest.json").write_text(json.dumps(about))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The commands that would have been given."""
    commands: list[tuple[str, list[str]]] = []

    def invoke(verb: Any, words: list[str]) -> int:
        commands.append((verb.name, words))
        return 0

    monkeypatch.setattr("bdg.commands.resume.invoke", invoke)
    return commands


def test_a_recorded_command_does_not_say_whom_to_trust(
    link: Link, given: Any, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["stage=generation", *SMALL, f"data.root={photographs}"]
    for recorded in ("trust=[json]", "++trust=[json]", "only.generation=['trust=[json]']"):
        describe(link, [*words, recorded])
        assert main(["resume", link.run.identity]) == 1
        assert "words='trust=[json]'" in capsys.readouterr().err
    describe(link, [*words, "trust=[json]"])
    assert main(["resume", link.run.identity, "words='trust=[json]'"]) == 0
    monkeypatch.setenv("BDG_TRUST", "other,json")
    assert main(["resume", link.run.identity]) == 0
    assert given == [("train", [*words, "trust=[json]"])] * 2


def test_a_folder_may_be_called_trust(link: Link, given: Any, photographs: Path) -> None:
    words = ["stage=generation", *SMALL, f"data.root={photographs}", "+logger.csv.prefix=/srv/trust/runs"]
    assert configs("train", words)[0]["trust"] == []
    check_trust("train", words, [])


def test_a_sweep_does_not_say_whom_to_trust(link: Link, photographs: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / "experiment"
    theirs.mkdir(parents=True)
    (theirs / "evil.yaml").write_text("# @package _global_\ntrust: [json]\n")
    words = [f"data.root={photographs}", "data.num_workers=0", "--config-dir", str(tmp_path / "theirs")]
    for cells in ("experiment=demo_smoke,evil", "sweep.grid={experiment: [demo_smoke, evil]}"):
        with pytest.raises(ValueError, match="trusts code of json"):
            check_trust("sweep", [cells, *words], [])
    check_trust("sweep", ["experiment=demo_smoke", "seed=1,2", *words], [])


def test_a_recorded_folder_of_configs_does_not_say_whom_to_trust(
    link: Link, given: Any, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    theirs = tmp_path / "theirs" / "experiment"
    theirs.mkdir(parents=True)
    ours = Path(conf.__path__[0]) / "experiment" / "demo_smoke.yaml"
    (theirs / ours.name).write_text(f"{ours.read_text()}\ntrust: [json]\n")
    words = ["stage=generation", *SMALL, f"data.root={photographs}", "--config-dir", str(tmp_path / "theirs")]
    describe(link, words)
    assert main(["resume", link.run.identity]) == 1
    assert "trusts code of json" in capsys.readouterr().err
    assert not given


def test_a_run_is_trained_by_the_words_that_made_it(link: Link, given: Any, photographs: Path, capsys: Any) -> None:
    assert main(["resume", link.run.identity]) == 0

    assert given == [("train", ["stage=generation", *SMALL, f"data.root={photographs}"])]
    assert capsys.readouterr().out.startswith("bdg train stage=generation experiment=demo_smoke ")


def test_further_words_replace_those_of_their_keys(link: Link, given: Any) -> None:
    assert main(["resume", link.run.identity, "words='data.num_workers=2 cluster=local'"]) == 0

    ((_, words),) = given
    assert words[-2:] == ["data.num_workers=2", "cluster=local"]
    assert "data.num_workers=0" not in words


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ("seed=5", r"cannot go on: its command now makes generation \w+ in .* \(data.seed: 0 and 5; seed: 0 and 5\)"),
        ("root=other", "in other/"),
    ],
)
def test_what_would_be_another_run_is_refused(link: Link, given: Any, capsys: Any, further: str, said: str) -> None:
    assert main(["resume", link.run.identity, f"words='{further}'"]) == 1

    assert re.search(said, capsys.readouterr().err)
    assert not given


def test_other_data_and_another_working_folder_are_named(link: Link, given: Any, capsys: Any) -> None:
    describe(link, ["seed=5", *link.words], data_digest="0" * 12, cwd="/elsewhere")

    assert main(["resume", link.run.identity]) == 1

    error = capsys.readouterr().err
    assert f"digest of the data: {'0' * 12} and {link.data}; working folder: /elsewhere and " in error


def test_a_copy_of_the_configs_that_is_gone_is_done_without(link: Link, given: Any) -> None:
    describe(link, [*link.words, "--config-dir", "runs/frozen/conf"])

    assert main(["resume", link.run.identity]) == 0

    assert given == [("train", list(link.words))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (None, "does not say which command made it: give the bdg train command again"),
        (["data.token=***"], "holds no secrets, and data.token of its command is one"),
    ],
)
def test_a_command_that_is_not_known_is_asked_for(link: Link, given: Any, capsys: Any, words: Any, said: str) -> None:
    describe(link, words)

    assert main(["resume", link.run.identity]) == 1

    assert said in capsys.readouterr().err


def test_a_run_that_is_being_trained_is_left_alone(link: Link, given: Any, capsys: Any) -> None:
    with (link.run.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["resume", link.run.identity]) == 1

    assert "is being trained now" in capsys.readouterr().err


def test_a_sweep_is_given_its_words_again(made: Any, given: Any) -> None:
    made.sweep("one", {"x": [("generation", "a" * 12)]})

    assert main(["resume", "one"]) == 0

    assert given == [("sweep", ["sweep=seeds"])]


def test_a_sweep_is_not_made_a_second_time_elsewhere(made: Any, given: Any, capsys: Any) -> None:
    folder = made.sweep("one", {"x": [("generation", "a" * 12)]})
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"root": "other"}))

    assert main(["resume", "one"]) == 1

    assert "was made where root=other led to it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a user's process, whose warnings are not ours to raise
def test_a_training_that_failed_ends_in_the_same_folder(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "stage=generation", *SMALL, f"data.root={photographs}"]) == 0
    (run,) = tmp_path.glob("runs/demo_smoke/generation/*")
    (run / "STATUS").write_text("failed\n")
    (run / "weights" / "ema.safetensors").unlink()

    assert main(["resume", run.name]) == 0

    assert list(run.parent.iterdir()) == [run]
    assert (run / "STATUS").read_text() == "done\n"
    assert json.loads((run / "throughput.json").read_text())["step"] == 3
