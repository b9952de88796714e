"""What `bdg evaluate` found: values of every image under one protocol, as tables for a terminal, a paper and other programs."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bdg.documents import parse_object
from bdg.files import replacing
from bdg.metrics import FACTS, Protocol, summary
from bdg.statistics import Interval, over_photographs, per_photograph

Row = Mapping[str, Any]

DEGRADED = "degraded"
COLUMNS = {"num_images": "images", "psnr_input": "PSNR in", "psnr": "PSNR", "gain": "gain dB", "ssim_input": "SSIM in"}
"""What the table calls a score; others go by their own name."""
TWO_PLACES = ("psnr", "gain", "niqe", "musiq", "brisque")
SAME = 0.01
"""Degraded images whose values differ by more are not the same."""


@dataclass(frozen=True)
class Report:
    """Values of every image, with what one must know to measure them again.

    images: the rows of degraded images ("psnr_input") and, unless `restored` is None, of restored ones ("psnr"), which tables
    call `restored`. others: other people's method -> its rows. missing: test sets of the protocol that were not there. scales:
    how many times smaller degraded images were before they were enlarged, if any.
    """

    protocol: Protocol
    degradations: Sequence[str]
    images: Sequence[Row]
    about: Mapping[str, Any] = field(default_factory=dict)
    scales: Sequence[int] = ()
    others: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    restored: str | None = "restored"
    missing: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The protocol in words, with what was done to the degraded images before."""
        smaller = ", ".join(f"x{scale}" for scale in self.scales)
        enlarged = f"; degraded images of {smaller} enlarged by bicubic" if smaller else ""
        missing = f"; without the sets {', '.join(self.missing)}" if self.missing else ""
        return f"{self.protocol}{enlarged}{missing}"

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        return summary(self.images, self.degradations)

    @cached_property
    def methods(self) -> dict[str, Sequence[Row]]:
        """Name -> rows; the degraded images are always among them."""
        suffixes = {DEGRADED: "_input"} | ({self.restored: ""} if self.restored else {})
        own: dict[str, Sequence[Row]] = {
            name: plain(self.images, self.protocol.measures, suffix) for name, suffix in suffixes.items()
        }
        return own | dict(self.others)

    @cached_property
    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """{method: {degradation: {measure: mean}}}, with "mean" behind the degradations."""
        return {name: summary(rows, self.degradations) for name, rows in self.methods.items()}

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """{method: {measure: 95 % interval of "mean" over photographs}}."""
        return {name: {m: interval(rows, m) for m in self.protocol.measures} for name, rows in self.methods.items()}

    def plus(self, path: Path) -> "Report":
        """With the methods of an earlier report.

        Raises ValueError unless it was made under the same protocol of the same images.
        """
        found = earlier(path, self)
        if twice := found.keys() & self.methods.keys():
            raise ValueError(f"add={path}: there is a '{min(twice)}' already: measure one of them with name=OTHER")
        return replace(self, others={**self.others, **found})

    def to_dict(self) -> dict[str, Any]:
        """Plain, as JSON takes it."""
        intervals = {
            name: {measure: [found.low, found.high] for measure, found in of.items()}
            for name, of in self.intervals.items()
        }
        return {
            **self.about,
            "name": self.restored,
            "protocol": {**self.protocol.to_dict(), "text": self.text},
            "scores": self.scores,
            "methods": self.means,
            "intervals_95": intervals,
            "images": self.images,
            "others": self.others,
        }

    def table(self) -> RenderableType:
        """The protocol, the degradations before and after, and the methods with their intervals; for a rich console."""
        parts: list[RenderableType] = [f"protocol: {self.protocol.name} {self.text}".replace(":  ", ": ")]
        if self.restored:
            parts.append(self._gains())
        if self.others or not self.restored:
            header, body, _ = layout(self)
            compared = Table("method", *header, box=SIMPLE, title=measures_text(self.protocol), title_justify="left")
            for name, cells in body:
                compared.add_row(name, *(" / ".join(cell) for cell in cells))
            parts.append(compared)
        return Group(*parts, *interval_lines(self))

    def _gains(self) -> Table:
        keys = ["num_images", *(key for key in self.scores["mean"] if key != "num_images")]
        order = [key for key in COLUMNS if key in keys] + [key for key in keys if key not in COLUMNS]
        table = Table("degradation")
        for key in order:
            table.add_column(COLUMNS.get(key, key.upper()), justify="right")
        for name, row in self.scores.items():
            table.add_row(name, *(digits(key, row[key]) for key in order), end_section=name == list(self.scores)[-2])
        return table


def plain(images: Sequence[Row], measures: Mapping[str, Any], suffix: str) -> list[dict[str, Any]]:
    """The rows of one method: what is known of each image, and its values by the measure's name."""
    return [
        {key: row[key] for key in row if key in FACTS} | {name: row[name + suffix] for name in measures}
        for row in images
    ]


def interval(rows: Sequence[Row], measure: str) -> Interval:
    values, photographs = [row[measure] for row in rows], [row.get("photograph", row["key"]) for row in rows]
    parts = [(row["degradation"], row.get("set")) for row in rows]
    return over_photographs(per_photograph(values, photographs, parts, [degradation for degradation, _ in parts]))


def earlier(path: Path, report: Report) -> dict[str, Sequence[Row]]:
    """The methods of a report that `json=` wrote, but for the degraded images, which must be those of this one."""
    if not path.is_file():
        raise FileNotFoundError(f"add={path}: no such file: name one that bdg evaluate json=FILE wrote")
    try:
        written = parse_object(path.read_bytes())
        said, images, others = f"{written['protocol']['text']}", list(written["images"]), dict(written["others"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"add={path} holds no measurement: name a file that bdg evaluate json=FILE wrote") from None
    if said != report.text:
        raise ValueError(
            f"add={path} was measured under another protocol ('{said}') than this ('{report.text}'): a table has one "
            "protocol, so measure both under it"
        )
    theirs, ours = ({_place(row): row for row in rows} for rows in (images, report.images))
    if theirs.keys() != ours.keys():
        raise ValueError(f"add={path}: {len(theirs.keys() ^ ours.keys())} images were measured in one of both only")
    first = next(iter(report.protocol.measures)) + "_input"
    if any(abs(theirs[place][first] - ours[place][first]) > SAME for place in ours):
        raise ValueError(f"add={path}: its degraded images are not those of this measurement: restore the same ones")
    own: dict[str, Sequence[Row]] = (
        {written["name"]: plain(images, report.protocol.measures, "")} if written.get("name") else {}
    )
    return own | others


def _place(row: Row) -> tuple[Any, ...]:
    return row["degradation"], row.get("set"), row["key"], row.get("severity")


# --- for a paper ---


def layout(report: Report) -> tuple[list[str], list[tuple[str, list[list[str]]]], set[tuple[int, int, int]]]:
    """Columns; of each method its cells, with a value for every measure; and which of them (method, column, measure) are best.

    A row for each method, a column for each degradation and the mean, as tables of all-in-one restoration are laid out.
    """
    columns = list(next(iter(report.means.values())))
    measures = report.protocol.measures
    body = [
        (name, [[digits(measure, means[column][measure]) for measure in measures] for column in columns])
        for name, means in report.means.items()
    ]
    best = set()
    for i, column in enumerate(columns):
        for j, (name, measure) in enumerate(measures.items()):
            values = [means[column][name] for means in report.means.values()]
            top = (max if measure.larger_is_better else min)(values)
            best |= {(method, i, j) for method, value in enumerate(values) if value == top and len(values) > 2}
    return columns, body, best


def measures_text(protocol: Protocol) -> str:
    return " / ".join(
        f"{name.upper()} {'up' if measure.larger_is_better else 'down'}" for name, measure in protocol.measures.items()
    )


def interval_lines(report: Report) -> list[str]:
    """What each method's mean is sure to; nothing where one photograph cannot tell."""
    lines = []
    for name, found in report.intervals.items():
        told = [
            f"{measure.upper()} {digits(measure, each.low)} to {digits(measure, each.high)}"
            for measure, each in found.items()
            if each.low is not None and each.high is not None
        ]
        lines += [f"{name}: {', '.join(told)}"] if told else []
    photographs = next(iter(next(iter(report.intervals.values())).values())).n
    return [f"95 % intervals of the mean, bootstrapped over {photographs} photographs", *lines] if lines else []


def markdown(report: Report) -> str:
    columns, body, best = layout(report)
    lines = [f"| {' | '.join(['method', *columns])} |", "|---|" + "---:|" * len(columns)]
    for m, (name, cells) in enumerate(body):
        values = [
            " / ".join(f"**{x}**" if (m, i, j) in best else x for j, x in enumerate(c)) for i, c in enumerate(cells)
        ]
        lines.append(f"| {' | '.join([name, *values])} |")
    names = ", ".join(report.protocol.metric_name(name) for name in report.protocol.measures)
    told = [f"{measures_text(report.protocol)}. Protocol {report.protocol.name}: {report.text} ({names})."]
    told += [f"{line}." for line in interval_lines(report)]
    return "\n".join(lines) + "\n\n" + "\n\n".join(told).replace("Protocol :", "Protocol:") + "\n"


def latex(report: Report) -> str:
    """A table for booktabs; the best of a column is bold, the protocol is in the caption."""
    columns, body, best = layout(report)
    arrows = " / ".join(
        escaped(name.upper()) + (r"$\uparrow$" if measure.larger_is_better else r"$\downarrow$")
        for name, measure in report.protocol.measures.items()
    )
    rows = []
    for m, (name, cells) in enumerate(body):
        values = [
            " / ".join(rf"\textbf{{{x}}}" if (m, i, j) in best else x for j, x in enumerate(c))
            for i, c in enumerate(cells)
        ]
        rows.append(" & ".join([escaped(name), *values]) + r" \\")
    caption = (
        f"{arrows}. {escaped(f'Protocol {report.protocol.name}: {report.text}.').replace('Protocol :', 'Protocol:')}"
    )
    intervals = "".join(f"% {line}\n" for line in interval_lines(report))
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \begin{{tabular}}{{l{'c' * len(columns)}}}",
            r"    \toprule",
            "    " + " & ".join(["Method", *map(escaped, columns)]) + r" \\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            intervals,
        ]
    )


def escaped(text: str) -> str:
    """As LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)


PAPER: Mapping[str, Callable[[Report], str]] = {".md": markdown, ".tex": latex}
"""Suffix of `table` -> what writes it."""


def check_table(path: Path) -> None:
    if path.suffix not in PAPER:
        raise ValueError(f"table={path}: end the name with one of {', '.join(PAPER)}")


# --- for other programs ---


def pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise ValueError(
            "parquet: pyarrow is not installed: pip install 'bdg[parquet]', or take json=FILE, which has the same rows"
        ) from None


def write_parquet(path: Path, report: Report) -> None:
    """A row for every image and method; the protocol is in the names of the values, and as JSON in the metadata."""
    arrow = pyarrow()
    facts = ("degradation", "set", "key", "severity", "photograph")
    named = {report.protocol.metric_name(name): name for name in report.protocol.measures}
    rows = [
        {"method": method, **{fact: row.get(fact) for fact in facts}, **{to: row[name] for to, name in named.items()}}
        for method, of_method in report.methods.items()
        for row in of_method
    ]
    text, number = arrow.string(), arrow.float64()
    kinds = {"method": text, **dict.fromkeys(facts, text), "severity": number, **dict.fromkeys(named, number)}
    about = {**report.about, "protocol": {**report.protocol.to_dict(), "text": report.text}}
    schema = arrow.schema(list(kinds.items()), metadata={"bdg": json.dumps(about)})
    with replacing(path) as file:
        importlib.import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows, schema=schema), file)


def digits(name: str, value: float) -> str:
    if name == "num_images":
        return f"{value:.0f}"
    return f"{value:.2f}" if name.removesuffix("_input") in TWO_PLACES else f"{value:.4f}"
