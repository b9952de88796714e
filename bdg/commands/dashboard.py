"""`bdg dashboard`: the panels of `bdg report` as a W&B workspace and report; made once, then updated."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdg.commands.request import Request
from bdg.commands.runs import Sweep, place, word
from callbacks.wandb_file import SETTING, STEP
from jobs.panels import Panel, panels
from jobs.run import write_text
from jobs.states import read_object

METRICS = ("psnr", "ssim")
LINEAGE = 100
"""Runs that the text of lineage names."""
NUMBERS = {"glcm.angles": "glcm/num_angles", "glcm.scales": "glcm/num_scales"}
"""Lists, which are no axis -> the numbers that stand for them."""


def run(config: DictConfig, request: Request) -> None:
    if config.metric not in METRICS:
        raise ValueError(f"metric={config.metric}: choose one of {', '.join(METRICS)}")
    if config.save and not config.entity:
        raise ValueError("save=true needs to know whose page it is: give entity=TEAM, your user or team in W&B")
    if find_spec("wandb_workspaces") is None:
        raise ValueError("bdg dashboard needs a package that is not installed: pip install wandb-workspaces")
    sweep = place(config).need_sweep(word(config, "name"))
    described = panels([cell.changes for cell in sweep.plan.cells], config.metric)
    made = [(panel.seeds, shown) for panel in described for shown in drawn(panel, degradations(sweep), lineage(sweep))]
    scores, others = ([shown for seeds, shown in made if seeds is kind] for kind in (True, False))
    known_at = sweep.folder / "dashboard.json"
    known = read_object(known_at)
    workspace, report = (make(sweep, config.entity, scores, others) for make in (make_workspace, make_report))
    specs = {"workspace": serialised(workspace), "report": serialised(report)}
    path = Path(config.json) if config.json else sweep.folder / "workspace.json"
    write_text(path, json.dumps(specs, indent=1, sort_keys=True))
    print(f"{len(made)} panels: {path}")
    if config.save:
        write_text(known_at, json.dumps(save(workspace, report, known), indent=1))
        print(*(shown["url"] for shown in read_object(known_at).values()), sep="\n")


def drawn(panel: Panel, names: Sequence[str], lines: Sequence[str]) -> Iterator[Any]:
    """What W&B shows for a panel of ours: one or several of its own. names: of degradations. lines: of the lineage."""
    import wandb_workspaces.reports.v2 as wr

    scores = [wr.SummaryMetric(best(name)) for name in expanded(panel.metrics, names)]
    axes = [wr.Config(axis(key)) for key in (panel.x, panel.y) if key not in (None, "step", "degradation")]
    groups = [wr.Config(axis(key)) for key in panel.lines]
    match panel.kind:
        case "table":
            yield wr.RunComparer(diff_only="split")
        case "curve":
            yield from (wr.ScatterPlot(title=panel.title, x=axes[0], y=score) for score in scores)
        case "heat":  # W&B has none: the third axis is the colour
            for score in scores:
                part = score.name.split("/")[1]
                yield wr.ScatterPlot(title=f"{panel.title}: {part}", x=axes[0], y=axes[1], z=score)
        case "bars":
            over_seeds = {"groupby": wr.Config(SETTING), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
            yield wr.BarPlot(title=panel.title, metrics=scores, orientation="v", **over_seeds)
        case "parallel":
            columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in (*groups, *scores)]
            yield wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
        case "importance":
            yield from (wr.ParameterImportancePlot(with_respect_to=score.name) for score in scores)
        case "lines":
            pattern = "|".join(f"^{name.replace('*', '[^/]+')}$" for name in panel.metrics)
            yield wr.LinePlot(title=panel.title, x=STEP, metric_regex=pattern, smoothing_factor=0)
        case "images":
            yield wr.MediaBrowser(title=panel.title, media_keys=["val/panel", "val/path"])
        case "lineage":
            yield wr.MarkdownPanel(markdown=f"**{panel.title}**\n\n" + "\n".join(lines))


def axis(key: str) -> str:
    """As callbacks/about.py calls a key of the config in W&B."""
    key = key.lstrip("+")
    return NUMBERS.get(key, key.replace(".", "/"))


def best(name: str) -> str:
    """The summary's word for a score at the best validation."""
    return f"best/{name.removeprefix('val/')}"


def expanded(metrics: Sequence[str], names: Sequence[str]) -> list[str]:
    """`val/*/psnr` -> one for each degradation."""
    return [metric.replace("*", name) for metric in metrics for name in (names if "*" in metric else [""])]


def degradations(sweep: Sweep) -> list[str]:
    """As the first run that was begun names them; "mean" alone before that."""
    for task in sweep.plan.tasks.values():
        path = Path(task.folder) / "config.yaml"
        if path.is_file():
            found: Any = OmegaConf.to_container(OmegaConf.load(path))
            return [str(name) for name in found.get("degradation") or {}]
    return ["mean"]


def lineage(sweep: Sweep) -> list[str]:
    tasks = sweep.plan.tasks
    lines = []
    for task in tasks.values():
        before = (
            f"{tasks[task.parent].stage} {task.parent}" if task.parent in tasks else "from scratch, or from outside"
        )
        lines.append(f"- {task.stage} `{task.identity}` <- {before}")
    return lines[:LINEAGE] + ([f"- and {len(lines) - LINEAGE} more"] if len(lines) > LINEAGE else [])


def make_workspace(sweep: Sweep, entity: str | None, scores: Sequence[Any], others: Sequence[Any]) -> Any:
    """Of the last run of each cell, since a workspace has one choice of runs for all its panels."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity or "",
        project=sweep.plan.project,
        name=sweep.plan.name,
        sections=[
            ws.Section(name=sweep.plan.name, panels=list(scores), is_open=True),
            ws.Section(name="Training and lineage", panels=list(others), is_open=True),
        ],
        runset_settings=ws.RunsetSettings(filters=among(last_runs(sweep))),
    )


def make_report(sweep: Sweep, entity: str | None, scores: Sequence[Any], others: Sequence[Any]) -> Any:
    """Scores of the last run of each cell, and how the runs of all stages trained."""
    import wandb_workspaces.reports.v2 as wr

    def grid(name: str, identities: Sequence[str], panels: Sequence[Any]) -> wr.PanelGrid:
        runs = wr.Runset(entity=entity or "", project=sweep.plan.project, name=name, filters=among(identities))
        return wr.PanelGrid(runsets=[runs], panels=list(panels))

    return wr.Report(
        entity=entity or "",
        project=sweep.plan.project,
        title=f"Sweep {sweep.plan.name}",
        description=f"{len(sweep.plan.cells)} cells, {len(sweep.plan.tasks)} runs",
        blocks=[
            grid(sweep.plan.name, last_runs(sweep), scores),
            grid("Training and lineage", list(sweep.plan.tasks), others),
        ],
    )


def last_runs(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(cell.tasks[-1] for cell in sweep.plan.cells if cell.tasks))


def among(identities: Sequence[str]) -> str:
    """A filter of W&B's; the id of a run is its identity, whereas its tags are of the time when it began."""
    return f"ID in {list(identities)!r}"


def serialised(made: Any) -> dict[str, Any]:
    """What W&B would be sent."""
    return json.loads(made._to_model().model_dump_json(by_alias=True))


def save(workspace: Any, report: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Sends both, in place of those that an earlier call has made. Raises OSError if W&B does not take them."""
    before = known.get("workspace", {})
    workspace._internal_name, workspace._internal_id = before.get("name", ""), before.get("id", "")
    report.id = known.get("report", {}).get("id", "")
    send(workspace.save)
    send(report.save)
    return {
        "workspace": {"name": workspace._internal_name, "id": workspace._internal_id, "url": workspace.url},
        "report": {"id": report.id, "url": report.url},
    }


def send(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:  # of wandb, requests or the server
        raise OSError(
            f"W&B did not take it ({error}): log in with wandb login, give entity=TEAM and runs that are there (bdg sync), "
            "or leave out save=true"
        ) from None
