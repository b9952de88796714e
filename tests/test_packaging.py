"""The wheel: what it holds, and that it works in a fresh environment, away from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bdg import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, ".")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bdg(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The command of an environment that has the wheel, and the dependencies of this one but not its checkout."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # a folder named in a .pth file is searched, but its own .pth files are not read: the editable bdg stays out of sight
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel)
    where = run(python, "-c", "import bdg, conf; print(bdg.__file__, conf.__file__)", cwd=environment)
    assert all(Path(file).is_relative_to(site) for file in where.split())
    return lambda *arguments, cwd: run(environment / "bin" / "bdg", *arguments, cwd=cwd)


def test_wheel_holds_every_committed_file_of_its_packages(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    rooms = ("bdg/", "callbacks/", "conf/", "datamodules/", "jobs/")
    committed = {name for name in listed.stdout.splitlines() if name.startswith(rooms) and (ROOT / name).exists()}
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert committed <= inside
    assert f"bdg-{__version__}.dist-info/licenses/LICENSE" in inside
    assert not [name for name in inside if not name.startswith((*rooms, "bdg-"))]


def test_command_works_away_from_the_checkout(bdg: Callable[..., str], tmp_path: Path) -> None:
    assert bdg("--version", cwd=tmp_path) == f"bdg {__version__}\n"
    assert "pipeline" in bdg("--help", cwd=tmp_path)
    assert "stage:\n  name: generation\n" in bdg("train", "--cfg", "job", cwd=tmp_path)
    assert "generation" in bdg("train", "--help", cwd=tmp_path)


def test_a_local_conf_precedes_that_of_the_wheel(bdg: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 4711\n")
    assert "\nseed: 4711\n" in bdg("train", "--cfg", "job", "experiment=mine", cwd=tmp_path)
