"""`bdg doctor`: what data sets hold, what is wrong with them, and which pictures they share.

Exit status 1 if there are errors or, with strict=true, warnings; else 0.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations, groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import torch
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.compose import build
from bdg.commands.pack import folder
from bdg.commands.request import Request
from datamodules.doctor import ERROR, NOTE, WARNING, Finding, Seen, compare, diagnose, statistics
from datamodules.exams import TEXTURE, Exam, examine, glance
from datamodules.sets import DataSet, Entry, open_sets
from jobs.run import write_text

STYLES = {ERROR: "bold red", WARNING: "bold yellow", NOTE: "bold cyan"}
AHEAD = 4  # entries per worker that are begun before their exams are asked for


def run(config: DictConfig, request: Request) -> None:
    if not 0.5 <= config.alike <= 1:  # below, strangers are alike
        raise ValueError(f"alike={config.alike}: give a likeness from 0.5 to 1, such as 0.85")
    glcm = build(config.glcm) if config.glcm.get("_target_") else None
    reading = {key: config[key] and f"{config[key]}" for key in ("layout", "label", "gopro", "scale")}
    own = [data for source in sources(config.source) for data in open_sets(source, **reading)]
    others = [once(data) for source in sources(config.against) for data in open_sets(source)]
    workers = config.workers or os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers, initializer=one_thread) as pool,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("looking", total=sum(len(data.entries) for data in (*own, *others)))

        def seen(data: DataSet, look: Callable[[Entry], Exam]) -> Seen:
            exams = []
            for exam in in_order(pool, look, data.entries, AHEAD * workers):
                exams.append(exam)
                bar.advance(task)
            return Seen(data, exams)

        examined = []
        for data in own:
            crop = None if data.part in ("val", "test") else config.crop
            examined.append(seen(data, partial(examine, matrix=glcm and glcm.matrix, crop=crop)))
        glanced = [seen(data, glance) for data in others]
    findings = [finding for each in examined for finding in diagnose(each, config.max_shift, config.alike)]
    for first, second in (*combinations(examined, 2), *product(examined, glanced)):
        findings += compare(first, second, config.alike)
    rows = [row for each in examined for row in statistics(each)]
    show(rows, findings, config.show)
    if config.json:
        report = {"sets": rows, "findings": [finding.to_dict() for finding in findings]}
        write_text(Path(config.json), json.dumps(report, indent=1) + "\n")
    num = Counter(finding.severity for finding in findings)
    if num[ERROR] or (config.strict and num[WARNING]):
        raise ValueError(f"found {num[ERROR]} kinds of errors and {num[WARNING]} of warnings, listed above")


def sources(words: str | Sequence[str] | None) -> list[str | list[str]]:
    """Folders one by one, and the shards together, of which a shell makes a word each."""
    named = [words] if isinstance(words, str) else list(words or [])
    tars = [word for word in named if word.endswith(".tar")]
    return [*(str(folder(word)) for word in named if word not in tars), *([tars] if tars else [])]


def once(data: DataSet) -> DataSet:
    """The set with one entry for each clean image."""
    return replace(data, entries=list({entry.hq: entry for entry in data.entries}.values()))


def one_thread() -> None:
    """How a worker begins: images are worked on side by side, not each by all cores."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def in_order(
    pool: ThreadPoolExecutor, look: Callable[[Entry], Exam], entries: Iterable[Entry], ahead: int
) -> Iterator[Exam]:
    """The exams in the order of the entries, `ahead` of which are begun before they are asked for."""
    begun: deque[Future[Exam]] = deque()
    for entry in entries:
        if len(begun) == ahead:
            yield begun.popleft().result()
        begun.append(pool.submit(look, entry))
    yield from (future.result() for future in begun)


def show(rows: Sequence[Mapping[str, Any]], findings: Sequence[Finding], places: int) -> None:
    """What each set holds, the statistics of its MAS-GLCM, and the findings, of each at most so many places."""
    console = Console(markup=False, highlight=False)
    for name, group in groupby(rows, itemgetter("set")):
        of_set = list(group)
        console.print(Text(f"{name}", "bold"), table(of_set, counts), sep="\n")
        if any(row["texture"] for row in of_set):
            console.print(table(of_set, texture))
    for finding in findings:
        heading = Text(f"{finding.severity}: ", STYLES[finding.severity])
        heading.append(f"{finding.what}, {finding.set} ({len(finding.where)})", "bold")
        rest = len(finding.where) - places
        lines = [*finding.where[:places], *([f"and {rest} more: show=N, or json=PATH"] if rest > 0 else [])]
        text = Text("\n".join([*(f"  {line}" for line in lines), f"  -> {finding.advice}"]))
        console.print(heading, text, sep="\n", soft_wrap=True)


def table(rows: Sequence[Mapping[str, Any]], cells: Callable[[Mapping[str, Any]], Mapping[str, str]]) -> Table:
    """A line per degradation, and one of the clean images."""
    made = Table("", *(Column(title, justify="right") for title in cells(rows[0])), box=SIMPLE)
    for row in rows:
        made.add_row(Text(row["degradation"] or "(clean)"), *cells(row).values())
    return made


def counts(row: Mapping[str, Any]) -> dict[str, str]:
    sizes = dict.fromkeys("x".join(map(str, row[end])) for end in ("smallest", "largest") if row[end])
    return {
        "images": f"{row['images']}",
        "photographs": f"{row['photographs']}",
        "size": " to ".join(sizes),
        "PSNR in": spread(row.get("psnr")),
        "shift px": " ".join(f"{by:+.2f}" for by in row.get("shift") or ()),
    }


def texture(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: spread(row["texture"].get(name)) for name in TEXTURE}


def spread(value: Mapping[str, float] | None) -> str:
    return f"{value['mean']:.2f}±{value['std']:.2f}" if value else ""
