"""The model card of an export: what the Hub reads at its top, and what a person reads below; a pure function of facts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import yaml

from bdg.commands.restore import describe
from bdg.commands.tables import MEAN, Table

DIGITS = {"ssim": 4, "lpips": 4, "dists": 4}
"""Decimals of a metric, by the beginning of its name; else 2."""


def card(facts: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """Markdown with a YAML head.

    facts: "name", "about" (metadata of the weights), "settings" (of the sampler), "license", "config" (of the run, {} if
    unknown), "lineage", "digest" (sha256 of the weights), "parameters", "explain" (bool), "onnx" (difference, or None),
    "own_photographs" (bool).
    """
    head = yaml.safe_dump(front(facts, tables), sort_keys=False, allow_unicode=True, width=10_000)
    shown = [{"table": table, "columns": columns(table), "rows": list(rows(table))} for table in tables]
    imported = facts["about"].get("imported")
    return _template().render(
        facts,
        head=head,
        tables=shown,
        degradations=trained_on(facts["about"]),
        imported=imported if isinstance(imported, Mapping) else None,
        ancestors=list(ancestors(facts["lineage"])),
        sampler=cell(describe(facts["settings"])),
    )


def front(facts: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, Any]:
    """What the Hub reads: library, task, licence, and scores whose names carry their protocol."""
    found: dict[str, Any] = {"library_name": "bdg", "pipeline_tag": "image-to-image"}
    found |= {"license": f"{facts['license']}"} if facts["license"] else {}
    found |= {"tags": ["image-restoration", "diffusion", *trained_on(facts["about"])]}
    if results := [result for table in tables for result in _results(table)]:
        found["model-index"] = [{"name": cell(facts["name"]), "results": results}]
    return found


def _results(table: Table) -> Iterator[dict[str, Any]]:
    for degradation, scores in table.scores.items():
        metrics = [
            {"type": cell(name), "value": round(value, 4), "name": cell(f"{name.upper()} ({table.protocol})")}
            for name, value in scores.items()
            if name != "num_images" and not name.endswith("_input")
        ]
        yield {
            "task": {"type": "image-to-image", "name": "image restoration"},
            "dataset": {"type": slug(f"{table.data} {degradation}"), "name": cell(f"{table.data}, {degradation}")},
            "metrics": metrics,
        }


def columns(table: Table) -> list[str]:
    """Metrics in the order of the rows, the degraded image's in front of the restored one's."""
    names = [name for name in next(iter(table.scores.values())) if name != "num_images"]
    plain = [name for name in names if not name.endswith("_input")]
    return [each for name in plain for each in (f"{name}_input", name) if each in names]


def rows(table: Table) -> Iterator[list[str]]:
    order = [name for name in table.scores if name != MEAN] + [MEAN] * (MEAN in table.scores)
    for name in order:
        values = table.scores[name]
        images = values.get("num_images")
        digits = ((column, DIGITS.get(column.partition("_")[0], 2)) for column in columns(table))
        yield [cell(name), "" if images is None else f"{images:.0f}"] + [
            f"{values[column]:.{number}f}" if column in values else "" for column, number in digits
        ]


def trained_on(about: Mapping[str, Any]) -> list[str]:
    """Names of the degradations, as far as the metadata of weights have any."""
    named = about.get("degradation")
    return [cell(name) for name in named] if isinstance(named, Mapping) else []


def ancestors(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The run and what it comes from, the newest first."""
    yield lineage
    for parent in lineage.get("parents") or ():
        yield from ancestors(parent)


def cell(value: Any) -> str:
    """Text that cannot leave its place in Markdown."""
    return re.sub(r"[\s|`<>\[\]]+", " ", f"{value}").strip()[:200]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bdg", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template("card.md")
