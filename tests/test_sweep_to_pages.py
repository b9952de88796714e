"""One command trains a sweep; its report, comparison, W&B runs and workspace speak of the same runs."""

import json
import warnings
from pathlib import Path

import pytest

from bdg.cli import main
from callbacks.wandb_file import fragments, records
from jobs.plan import Plan

WORDS = ("experiment=demo_smoke", "data.root=photographs", "sweep.name=mine", "stage.lambda=0.05,0.1", "logger=wandb")


@pytest.mark.slow
def test_a_sweep_yields_report_comparison_offline_runs_and_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("plotly")
    with warnings.catch_warnings(action="ignore"):  # its own, at import
        pytest.importorskip("wandb_workspaces.reports.v2")
        pytest.importorskip("wandb_workspaces.workspaces")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["pack", "pkg://datamodules/photographs", "photographs", "parts=photographs"]) == 0
    assert main(["sweep", *WORDS]) == 0
    (folder,) = Path("runs").glob("*/sweeps/mine")
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    last = [cell.tasks[-1] for cell in plan.cells]

    assert main(["report", "mine", "measure=true"]) == 0
    assert main(["compare", *last, "output=compare.html"]) == 0
    assert main(["dashboard", "mine"]) == 0

    page, compared = (folder / "report.html").read_text(), Path("compare.html").read_text()
    assert all(identity in page for identity in plan.tasks)
    assert all(identity in compared for identity in last)
    assert json.dumps(last) in json.dumps(json.loads((folder / "workspace.json").read_text())["workspace"])
    for task in plan.tasks.values():
        (fragment,) = fragments(Path(task.folder))
        (run,) = (record.run for record in records(fragment.file) if record.HasField("run"))
        assert (run.run_id, run.run_group, run.job_type) == (task.identity, "mine", task.stage)
