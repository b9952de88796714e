"""The rules of the house: who imports whom, what files may hold."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bdg", "callbacks", "datamodules", "jobs")

MAY_IMPORT = {
    "bdg": {"bdg"},
    "bdg.__main__": {"bdg.cli"},
    "bdg.cli": {"bdg", "bdg.commands"},
    "bdg.commands": {"bdg", "bdg.commands", "callbacks", "datamodules", "jobs"},
    "callbacks": {"bdg", "callbacks", "jobs.run", "jobs.secrets"},
    "datamodules": {"bdg", "datamodules"},
    "jobs": {"jobs"},
}
"""A package and those that it may import from; the longest name that fits a module counts."""

ORDER = ("types", "schedule", "diffusion", "samplers", "losses", "stages")
"""In bdg, a module may import those before it. `losses` sees no more than `types` and `glcm`."""

HEAVY = {"hydra", "lightning", "numpy", "omegaconf", "torch", "wandb"}


def modules() -> dict[str, Path]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imports(name: str, everywhere: bool = True) -> Iterator[str]:
    """What a module imports, as absolute names of modules; `everywhere`: also inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: write the full name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (full if full in MODULES else str(node.module) for full in inner)


def home(name: str, places: set[str]) -> str | None:
    """The longest of `places` that `name` lies in."""
    inside = [place for place in places if name == place or name.startswith(f"{place}.")]
    return max(inside, key=len, default=None)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_what_their_room_may(name: str) -> None:
    allowed = MAY_IMPORT[home(name, set(MAY_IMPORT)) or ""]
    for imported in imports(name):
        if imported.partition(".")[0] in PACKAGES:
            place = home(imported, allowed | {"bdg.commands", "bdg.cli"})
            assert place in allowed, f"{name} must not import {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("bdg.")])
def test_the_method_is_built_from_below(name: str) -> None:
    def storey(module: str) -> int | None:
        part = module.split(".")[1] if module.startswith("bdg.") else ""
        return ORDER.index(part) if part in ORDER else None

    here = storey(name)
    for imported in imports(name):
        above = storey(imported)
        assert here is None or above is None or above <= here, f"{name} must not import {imported}"
        if name == "bdg.losses" and imported.startswith("bdg."):
            assert imported in ("bdg.types", "bdg.glcm"), f"{name} must not import {imported}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: {other for other in imports(name) if other in MODULES} for name in MODULES}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in finished:
            for other in graph[name]:
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", ["bdg", "bdg.cli", "bdg.commands", "bdg.commands.errors", "bdg.commands.verbs"])
def test_the_door_of_the_command_line_is_light(name: str) -> None:
    assert not HEAVY & {imported.partition(".")[0] for imported in imports(name, everywhere=False)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("jobs")])
def test_jobs_start_without_torch(name: str) -> None:
    assert not {"torch", "lightning"} & {imported.partition(".")[0] for imported in imports(name)}


@pytest.mark.parametrize("name", MODULES)
def test_checkpoints_are_loaded_as_data_only(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True", f"{name}:{node.lineno}: a checkpoint could run code"


@pytest.mark.parametrize("name", MODULES)
def test_files_open_with_a_sentence(name: str) -> None:
    opening = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    assert re.match(r"[^\n]{10,}[.;:?!]", opening.replace("\n", " ")), f"{MODULES[name]} does not say what it is"


# --- configs ---

CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_file_fits_on_a_page(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 35


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_command(path: Path) -> None:
    package, command = path.read_text().splitlines()[:2]
    assert package == "# @package _global_"  # Hydra reads it only above every other comment
    assert re.match(rf"# .*\bbdg \w+ .*\bexperiment=\[?(\w+,)*{path.stem}\b", command), (
        f"{path.name} opens with: {command}"
    )


# --- all committed files ---


def test_what_is_committed_knows_no_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(rb"(?<![\w.])/(work|home|root|Users|mnt|scratch)/\w|\.\./shared/")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not name.startswith(("tests/", "benchmarks/")):
            found += [f"{name}: {line!r}" for line in path.read_bytes().splitlines() if machine.search(line)]
    assert not found
