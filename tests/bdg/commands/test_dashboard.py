"""The W&B page of a sweep: the panels of the report in W&B's words; the calls that send it are the one seam."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main
from bdg.commands import dashboard
from bdg.commands.dashboard import axis, best, expanded
from jobs.panels import KINDS
from jobs.plan import Cell, Plan, Task

GOLDEN = Path(__file__).parents[2] / "golden" / "workspace.json"
A, B = "0123456789ab", "abcdef012345"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two lambdas, two lists of scales, two lists of angles and two seeds; one stage of two is begun."""
    monkeypatch.chdir(tmp_path)
    cells = tuple(
        Cell(
            f"lambda={value},scales={len(scales)},angles={len(angles)},seed={seed}",
            {"stage.lambda": value, "glcm.scales": scales, "glcm.angles": angles, "seed": seed},
            (A, B),
        )
        for value in (0.05, 0.1)
        for scales in ([1], [1, 2])
        for angles in ([0], [0, 0.8])
        for seed in (0, 1)
    )
    folder = "runs/demo/{}/{}"
    tasks = {
        A: Task("generation", A, folder.format("generation", A), None, ("stage=generation",), (0,), 4),
        B: Task("bridging", B, folder.format("bridging", B), A, ("stage=bridging",), (0,), 4),
    }
    plan = Plan("both", "runs", "demo", cells, tasks)
    plan.folder.mkdir(parents=True)
    (plan.folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    begun = Path(tasks[A].folder)
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("degradation: {rain: {}, haze: {}}\n")
    return plan.folder


def test_keys_and_scores_are_called_as_they_are_logged() -> None:
    assert [axis(key) for key in ("stage.lambda", "glcm.angles", "+data.x")] == [
        "stage/lambda",
        "glcm/num_angles",
        "data/x",
    ]
    assert best("val/mean/psnr") == "best/mean/psnr"
    assert expanded(("val/*/psnr", "val/mean/psnr"), ["rain", "haze"]) == [
        "val/rain/psnr",
        "val/haze/psnr",
        "val/mean/psnr",
    ]


def need_workspaces() -> None:
    with warnings.catch_warnings(action="ignore"):  # its own, at import
        pytest.importorskip("wandb_workspaces.reports.v2")
        pytest.importorskip("wandb_workspaces.workspaces")


def plain(path: Path) -> Any:
    """Without the numbers that are drawn for each panel."""
    text = re.sub(r'"(__id__|id|ref)": "[a-z0-9]*"', r'"\1": ""', path.read_text())
    return json.loads(text)


def test_workspace_and_report_are_as_recorded(sweep: Path) -> None:
    """To record anew: write what `plain` gives to the golden file."""
    need_workspaces()
    assert main(["dashboard", "both"]) == 0
    assert plain(sweep / "workspace.json") == json.loads(GOLDEN.read_text())


def test_every_kind_of_panel_is_drawn(sweep: Path) -> None:
    need_workspaces()
    assert main(["dashboard", "both"]) == 0
    shown = {panel["viewType"] for panel in panels_of(plain(sweep / "workspace.json")["workspace"])}

    assert {"Run Comparer", "Scatter Plot", "Bar Chart", "Parallel Coordinates Plot"} <= shown
    assert {"Parameter Importance", "Run History Line Plot", "Media Browser", "Markdown Panel"} <= shown
    assert len(KINDS) == 9  # a new kind needs its case in `drawn`


def test_scores_are_those_of_the_last_run_of_each_cell(sweep: Path) -> None:
    need_workspaces()
    assert main(["dashboard", "both"]) == 0
    made = plain(sweep / "workspace.json")
    grids = [block["metadata"] for block in made["report"]["spec"]["blocks"] if "metadata" in block]

    def asked(filters: Any) -> list[str]:
        return (
            filters["value"] if "value" in filters else [each for inner in filters["filters"] for each in asked(inner)]
        )

    assert asked(made["workspace"]["spec"]["section"]["runSets"][0]["filters"]) == [B]
    assert [asked(grid["runSets"][0]["filters"]) for grid in grids] == [[B], [A, B]]
    (bars,) = (panel for panel in panels_of(made["workspace"]) if panel["viewType"] == "Bar Chart")
    assert "setting" in json.dumps(bars)


def panels_of(workspace: Any) -> list[Any]:
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


class Saved:
    """A workspace or report that is taken, and gets a name where it has none."""

    url = "https://wandb.example/page"

    def __init__(self) -> None:
        self._internal_name = self._internal_id = self.id = ""
        self.calls: list[tuple[str, str]] = []

    def save(self) -> None:
        self.calls.append((self._internal_id, self.id))
        self._internal_name, self._internal_id = self._internal_name or "name", self._internal_id or "view"
        self.id = self.id or "report"


def test_what_was_made_is_updated_and_not_made_again() -> None:
    workspace, report = Saved(), Saved()
    known = dashboard.save(workspace, report, {})
    again = dashboard.save(workspace, report, known)

    assert [call[0] for call in workspace.calls] == ["", "view"]
    assert [call[1] for call in report.calls] == ["", "report"]
    assert again == known


def test_what_wandb_does_not_take_is_said(sweep: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("permission denied")

    with pytest.raises(OSError, match=r"W&B did not take it \(permission denied\): log in with wandb login"):
        dashboard.send(refuse)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metric=lpips"], "metric=lpips: choose one of psnr, ssim"),
        (["save=true"], "save=true needs to know whose page it is"),
    ],
)
def test_wrong_words_are_refused(
    sweep: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "both", *words]) == 1
    assert message in capsys.readouterr().err


def test_without_its_package_it_says_what_is_missing(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)

    assert main(["dashboard", "both"]) == 1
    assert "pip install wandb-workspaces" in capsys.readouterr().err
