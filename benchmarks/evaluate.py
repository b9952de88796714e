"""What the packaged weights, or others, do to real samples: a table for each protocol, over sets laid out TASK/SET/{lq,gt}.

    python benchmarks/evaluate.py FOLDER [--weights PATH] [--protocols rgb y] [--images N]

Each image is restored once. LPIPS is measured, too, and NIQE of sets of degraded images alone, where their weights are there
(bdg weights fetch all). Sets of clean images alone are left out, and images too small for a metric.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circumstances import circumstances
from torch import Tensor

from bdg.commands.compose import build, compose
from bdg.commands.evaluate import evaluate, open_source
from bdg.commands.evaluated import Report, digits
from bdg.commands.restore import load_restorer, restoring
from bdg.metrics import Protocol
from bdg.perceptual import Lpips, weights_path
from datamodules.restored import Restore

UNFIT = {"levin09_gray": "its kernels shift the image by several pixels"}
"""Sets whose pairs cannot be compared as they are."""
COLUMNS = (
    "num_images",
    "psnr_input",
    "psnr",
    "gain",
    "ssim_input",
    "ssim",
    "lpips_input",
    "lpips",
    "niqe_input",
    "niqe",
)


def once(restore: Restore) -> Restore:
    """The same, but for an image that was restored before its result is taken again."""
    kept: dict[str, Tensor] = {}

    def restored(x_lq: Tensor, names: Sequence[str]) -> Tensor:
        (name,) = names
        if name not in kept:
            kept[name] = restore(x_lq, names)
        return kept[name]

    return restored


def sets(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Folders to measure, and whether there are clean images."""
    for found in sorted(path for path in folder.glob("*/*") if (path / "lq").is_dir()):
        clean = (found / "gt").is_dir()
        if found.name not in UNFIT:
            yield found if clean else found / "lq", clean


def measured(folder: Path, restore: Restore, protocol: str, images: int | None) -> Report:
    layout = "photographs" if protocol == "no_reference" else "pairs"
    config = compose("evaluate", [f"source={folder}", f"protocol={protocol}", f"layout={layout}"])
    chosen = build(config.protocol)
    if layout == "pairs" and weights_path("lpips").is_file():
        chosen = chosen.plus({"lpips": Lpips()})
    source = open_source(config, chosen)
    batches = itertools.islice(filter(partial(fits, chosen), source.batches), images)
    return evaluate(restore, batches, source.degradations, chosen, scales=source.scales)


def fits(protocol: Protocol, batch: Mapping[str, Any]) -> bool:
    """Whether the images are large enough for its metrics; NIQE's least is 96 x 192."""
    try:
        protocol.check_size(*batch["x_lq"].shape[-2:])
    except ValueError:
        return False
    return True


def table(rows: Mapping[str, Report]) -> list[str]:
    reports = [report.scores["mean"] for report in rows.values()]
    columns = [name for name in COLUMNS if any(name in scores for scores in reports)]
    titles = [name.removeprefix("num_").replace("_input", " in").upper() for name in columns]
    lines = [f"| set | {' | '.join(titles)} |", "|---|" + "---:|" * len(columns)]
    for (name, report), scores in zip(rows.items(), reports, strict=True):
        name += "".join(f" x{scale}" for scale in report.scales)
        lines.append(f"| {name} | {' | '.join(digits(column, scores[column]) for column in columns)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="null")
    parser.add_argument("--protocols", nargs="+", default=["rgb", "y"])
    parser.add_argument("--images", type=int, help="of each set, at most")
    options = parser.parse_args()
    config = compose("evaluate", ["source=x", f"weights={options.weights}"])
    restorer = load_restorer(config)
    restore, _ = restoring(restorer, config)
    begin = time.perf_counter()
    tables: dict[str, dict[str, Report]] = {}
    for folder, clean in sets(options.folder):
        again = once(restore)
        name = folder.relative_to(options.folder).as_posix()
        for protocol in options.protocols if clean else ["no_reference"] * weights_path("niqe").is_file():
            tables.setdefault(protocol, {})[name] = measured(folder, again, protocol, options.images)
    took = time.perf_counter() - begin
    print("# Real samples restored", "", circumstances("torch", "torchmetrics"), sep="\n")
    print(f"Weights {restorer}. {took:.0f} s.")
    for protocol, rows in tables.items():
        texts = list(dict.fromkeys(f"{report.protocol}" for report in rows.values()))
        print("", f"## {protocol}", "", *texts, "", *table(rows), sep="\n")
    print("", "x4: degraded images of a quarter of the size, enlarged by bicubic first.", sep="\n")
    print(*(f"Left out: {name}, as {why}." for name, why in UNFIT.items()), sep="\n")


if __name__ == "__main__":
    main()
