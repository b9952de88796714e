import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import freeze as module
from jobs.freeze import PACKAGES, environment, freeze, train_words
from jobs.run import code

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages that may be edited."""
    folder = tmp_path / "home"
    for package in PACKAGES:
        (folder / package / "__pycache__").mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f'"""{package}."""\n')
        (folder / package / "__pycache__" / "__init__.pyc").write_text("")
    (folder / "conf" / "network").mkdir()
    (folder / "conf" / "network" / "T.yaml").write_text("width: 1\n")
    monkeypatch.setattr(module, "HOME", folder)
    return folder


def test_the_copy_stays_when_the_files_are_edited(home: Path, tmp_path: Path) -> None:
    frozen = freeze(tmp_path / "frozen")
    (home / "conf" / "network" / "T.yaml").write_text("width: 2\n")
    (home / "bdg" / "__init__.py").write_text("raise ValueError\n")

    assert (frozen / "conf" / "network" / "T.yaml").read_text() == "width: 1\n"
    assert (frozen / "bdg" / "__init__.py").read_text() == '"""bdg."""\n'


def test_the_same_files_come_to_the_same_place_and_others_to_another(home: Path, tmp_path: Path) -> None:
    one, same = freeze(tmp_path / "frozen"), freeze(tmp_path / "frozen")
    (home / "jobs" / "run.py").write_text("")
    other = freeze(tmp_path / "frozen")

    assert one == same != other
    assert sorted(path.name for path in (tmp_path / "frozen").iterdir()) == sorted([one.name, other.name])


def test_configs_are_merged_and_the_first_folder_wins(home: Path, tmp_path: Path) -> None:
    for place, names in {"first": ("T", "mine"), "second": ("T", "other")}.items():
        (tmp_path / place / "network").mkdir(parents=True)
        for name in names:
            (tmp_path / place / "network" / f"{name}.yaml").write_text(f"from: {place}\n")
    (tmp_path / "first" / "weights.bin").write_text("large")

    conf = freeze(tmp_path / "frozen", [tmp_path / "first", tmp_path / "second"]) / "conf"

    texts = {path.stem: path.read_text() for path in (conf / "network").iterdir()}
    assert texts == {"T": "from: first\n", "mine": "from: first\n", "other": "from: second\n"}
    assert not (conf / "weights.bin").exists()


def test_trusted_packages_of_ones_own_are_copied_and_installed_ones_are_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "own" / "freeze_lab"
    (lab / "data").mkdir(parents=True)
    for name in ("__init__.py", "nets.py", "data/names.txt", "data/weights.bin"):
        (lab / name).write_text("")
    (tmp_path / "own" / "freeze_pace.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "own")

    frozen = freeze(tmp_path / "frozen", (), ["freeze_lab.nets", "freeze_pace", "yaml", "json", "freeze_absent"])

    added = {path.relative_to(frozen).as_posix() for path in frozen.rglob("*") if path.is_file()}
    added -= {path.relative_to(frozen).as_posix() for path in frozen.rglob("*") if path.parts[-2] in PACKAGES}
    assert {"freeze_lab/__init__.py", "freeze_lab/nets.py", "freeze_lab/data/names.txt", "freeze_pace.py"} <= added
    assert not any("weights" in name or name.startswith(("yaml", "json/")) for name in added)


def test_only_sources_are_copied_with_the_commit_they_are_of(home: Path, tmp_path: Path) -> None:
    frozen = freeze(tmp_path / "frozen")

    assert not [*frozen.rglob("__pycache__")]
    assert json.loads((frozen / "code.json").read_text()) == code()


def test_a_copy_that_fails_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        freeze(tmp_path / "frozen")

    assert not [*(tmp_path / "frozen").iterdir()]


def test_an_identity_of_digits_stays_a_word() -> None:
    assert train_words(["stage=generation"], "0123e4567890", Path("/f/d")) == [
        *("train", "stage=generation", "identity='0123e4567890'", "--config-dir", "/f/d/conf")
    ]


def test_a_frozen_job_composes_as_before_whatever_lies_around_it(tmp_path: Path) -> None:
    """Started in a checkout whose code and configs were edited after submission."""
    mine = tmp_path / "conf" / "network" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("width: 1\n")
    frozen = freeze(tmp_path / "frozen", [tmp_path / "conf"])
    mine.write_text("width: 2\n")
    (tmp_path / "conf" / "train.yaml").write_text("edited: true\n")
    (tmp_path / "bdg").mkdir()
    (tmp_path / "bdg" / "__init__.py").write_text("raise ValueError('edited')\n")
    show = "import sys; from bdg.commands.compose import compose; import bdg, jobs.run; import json; "
    show += "c = compose('train', sys.argv[1:2], sys.argv[2]); "
    show += "print(json.dumps([bdg.__file__, c.network.width, c.seed, c.get('edited'), jobs.run.code()]))"

    done = subprocess.run(
        [sys.executable, "-c", show, "network=mine", str(frozen / "conf")],
        cwd=tmp_path,
        env=os.environ | environment(frozen),
        capture_output=True,
        text=True,
        check=True,
    )

    file, width, seed, edited, commit = json.loads(done.stdout)
    assert Path(file).is_relative_to(frozen)
    assert (width, seed, edited) == (1, 0, None)
    assert commit == code()
