"""How large the page of `bdg report` is for a sweep of made-up runs, how long it takes to write, and to open in a browser.

python benchmarks/report.py [--lambdas 5 --scales 5 --seeds 4] [--keep FOLDER]
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from circumstances import circumstances
from PIL import Image

from jobs.evaluation import image_name
from jobs.plan import Cell, Plan, Task

PARTS = ("rain", "haze", "blur", "noise", "low_light")
STAGES = ("generation", "bridging", "restoration")
PROTOCOL = "RGB, border 0, rounded to uint8, mean over images; SSIM 11x11 gaussian, sigma 1.5, inside"
PHOTOGRAPHS = 12


def made_up_sweep(
    root: Path,
    name: str = "made_up",
    lambdas: Sequence[float] = (0.05, 0.1, 0.2),
    scales: Sequence[Sequence[int]] = ((1, 2), (1, 2, 4), (1, 2, 4, 8)),
    seeds: Sequence[int] = (0, 1, 2),
    done: float = 1.0,
    per_image: bool = True,
    steps: int = 2000,
) -> Path:
    """A sweep's folder below root/demo, its runs with all files that a page reads. done: which share of the cells is."""
    project = root / "demo"
    tasks: dict[str, Task] = {}
    users: dict[str, list[int]] = {}
    cells = []
    points = list(itertools.product(lambdas, map(list, scales), seeds))
    for position, (weight, sizes, seed) in enumerate(points):
        chain: list[str] = []
        for stage in STAGES:
            what = (stage, seed) if stage == "generation" else (stage, seed, weight, tuple(sizes))
            identity = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
            parent = chain[-1] if chain else None
            folder = f"{project}/{stage}/{identity}"
            tasks.setdefault(identity, Task(stage, identity, folder, parent, (f"stage={stage}",), (), steps))
            users.setdefault(identity, []).append(position)
            chain.append(identity)
        text = f"lambda={weight},scales={'-'.join(map(str, sizes))},seed={seed}"
        changes = {"stage.lambda": weight, "glcm.scales": sizes, "seed": seed}
        cells.append(Cell(text, changes, tuple(chain)))
    tasks = {own: Task(**{**vars(task), "cells": tuple(users[own])}) for own, task in tasks.items()}
    plan = Plan(name, str(root), "demo", tuple(cells), tasks)
    write(plan.folder / "plan.json", plan.to_dict())
    for position, ((weight, sizes, seed), cell) in enumerate(zip(points, cells, strict=True)):
        if position < done * len(cells):
            for identity in cell.tasks:
                made_up_run(Path(tasks[identity].folder), weight, sizes, seed, per_image, steps)
    return plan.folder


def made_up_run(folder: Path, weight: float, sizes: Sequence[int], seed: int, per_image: bool, steps: int) -> None:
    """Better with more scales and near lambda 0.1; each photograph has its difficulty, each seed its luck."""
    if folder.exists():
        return
    random = np.random.default_rng([seed, len(sizes), round(1000 * weight)])
    luck = 0.05 * np.random.default_rng([seed, 1]).normal()
    good = 24 + 0.3 * len(sizes) - 1.2 * (math.log10(weight) + 1) ** 2 + luck + 0.03 * random.normal()
    hard = np.random.default_rng(7).normal(size=(PHOTOGRAPHS, len(PARTS)))
    images = [
        {
            "degradation": part,
            "psnr": good + p - 2 + 1.5 * hard[u, p] + 0.1 * random.normal(),
            "psnr_input": 17 + p + 1.5 * hard[u, p],
            "ssim": 0.8 + 0.01 * (good - 24) + 0.02 * hard[u, p],
            "ssim_input": 0.6 + 0.02 * hard[u, p],
            "key": f"photo_{u}",
            "severity": severity,
        }
        for u in range(PHOTOGRAPHS)
        for p, part in enumerate(PARTS)
        for severity in (3.0, 5.0)
    ]
    final = folder.parent.name == "restoration"
    metrics = {"val/prior_noise_loss": 0.1 + 0.01 * random.random()}
    for part in (*PARTS, "mean"):
        own = [row for row in images if part in ("mean", row["degradation"])]
        for metric in ("psnr", "ssim"):
            metrics[f"val/{part}/{metric}"] = float(np.mean([row[metric] for row in own]))
    config = {
        "seed": seed,
        "protocol": {"color": "rgb", "border": 0, "round_uint8": True},
        "data": {"val_shards": "val-*.tar", "val_crop": None, "val_severities": [4, 5]},
        "degradation": {part: {"severity": [4, 5]} for part in PARTS},
        "stage": {"condition": "x_lq"},
    }
    write(folder / "STATUS", "done\n")
    write(folder / "weights" / "ema.safetensors", "weights")
    write(folder / "metrics.json", metrics)
    write(folder / "config.yaml", yaml.safe_dump(config))
    versions = {"torch": "2.13.0", "lightning": "2.6.4"}
    manifest = {"data_digest": "ad2fdb773c09", "code": {"commit": "0" * 40, "diff": ""}, "versions": versions}
    write(folder / "manifest.json", {**manifest, "host": {"name": "node1", "python": "3.11.2"}, "parents": []})
    speed = {
        "step": steps,
        "max_steps": steps,
        "step_s": 0.1,
        "wall_s": 0.1 * steps * (1 + random.random()),
        "devices": 1,
    }
    write(folder / "throughput.json", speed)
    lines = ["step,epoch,loss/total,loss/noise,loss/residual,mas/cosine,val/mean/psnr,val/mean/ssim,time/step_s"]
    for step in range(9, steps, 10):
        loss = 0.05 + math.exp(-step / 400) * 0.4 + 0.01 * random.normal()
        score = f"{good - 3 * math.exp(-step / 500):.4f},{0.8:.4f}" if step % 200 == 199 else ","
        lines.append(f"{step},0,{loss:.5f},{loss / 2:.5f},{loss / 3:.5f},{0.9:.3f},{score},0.1")
    write(folder / "logs" / "version_0" / "metrics.csv", "\n".join(lines) + "\n")
    if final and per_image:
        found = {"protocol": {"color": "rgb", "border": 0, "round_uint8": True, "text": PROTOCOL}, "images": images}
        write(folder / "evaluation" / "test-0" / "per_image.json", found)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def opened(page: Path) -> float:
    """Seconds from the click until the table and the first chart are there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        begin = time.monotonic()
        tab.goto(page.as_uri())
        tab.wait_for_selector("#table tbody tr")
        tab.locator("#charts .chart").first.scroll_into_view_if_needed()
        tab.wait_for_selector(".main-svg")
        took = time.monotonic() - begin
        browser.close()
    return took


def made_up_pictures(run: Path, better: float = 0.5, photographs: int = 3, seed: int = 0) -> None:
    """An evaluation `shown` with pictures: noise of which the share `better` is taken away, less of every second one's."""
    random = np.random.default_rng(seed)
    common = run.parents[1] / "evaluation" / "shown"
    images = []
    for u, (part, severity) in itertools.product(range(photographs), itertools.product(("rain", "haze"), (1.0, 3.0))):
        rows, columns = np.mgrid[0:96, 0:128]
        clean = np.stack([rows * 2, columns, 255 - rows - columns], 2).astype(np.float64)
        noise = np.random.default_rng([u, round(severity), len(part)]).normal(size=clean.shape) * 12 * severity
        left = 1 - better * (1 if u % 2 == 0 else 0.4) * (1 + 0.05 * random.normal())
        name = image_name(part, f"photo_{u}", severity)
        files = {
            run / "evaluation" / "shown" / "images" / name: left,
            common / "degraded" / name: 1,
            common / "clean" / name: 0,
        }
        for path, share in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((clean + share * noise).clip(0, 255).astype(np.uint8)).save(path)
        before = 20 - 3 * severity
        scores = {"psnr": before - 20 * math.log10(left), "psnr_input": before, "ssim": 1 - left / 2, "ssim_input": 0.5}
        images.append({"degradation": part, "key": f"photo_{u}", "severity": severity, **scores})
    write(run / "evaluation" / "shown" / "per_image.json", {"protocol": {"text": PROTOCOL}, "images": images})


def break_runs(sweep: Path) -> None:
    """Leaves the runs of a sweep as no training should: the first ones have each another fault."""
    plan = Plan.from_dict(json.loads((sweep / "plan.json").read_text()))
    folders = [Path(plan.tasks[cell.tasks[-1]].folder) for cell in plan.cells]
    (folders[0] / "metrics.json").unlink()
    (folders[1] / "metrics.json").write_text('{"val/mean/psnr": 24.')
    (folders[2] / "config.yaml").write_text("a: [")
    (folders[3] / "evaluation" / "test-0" / "per_image.json").write_text('{"images": [{"key"')
    with (folders[4] / "logs" / "version_0" / "metrics.csv").open("a") as file:
        file.write('2009,0,"0.1')
    shutil.rmtree(folders[5])
    (folders[6] / "throughput.json").write_text("[]")
    (folders[7] / "manifest.json").write_text('{"code": 3, "versions": null, "host": []}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("lambdas", 5), ("scales", 5), ("seeds", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        lambdas = [round(0.02 * 2**i, 4) for i in range(given.lambdas)]
        scales = [list(range(1, 2 + i)) for i in range(given.scales)]
        sweep = made_up_sweep(folder / "runs", "made_up", lambdas, scales, list(range(given.seeds)))
        begin = time.monotonic()
        command = [sys.executable, "-m", "bdg", "report", "made_up", f"root={folder / 'runs'}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        wrote = time.monotonic() - begin
        page = sweep / "report.html"
        took = sorted(opened(page) for _ in range(3))
        print(f"# The page of a sweep\n\n{circumstances('plotly', 'playwright')}")
        print("\n| cells | size of the page | written in | opened in (3 times) |\n|---|---|---|---|")
        count = given.lambdas * given.scales * given.seeds
        times = ", ".join(f"{seconds:.1f} s" for seconds in took)
        print(f"| {count} | {page.stat().st_size / 1e6:.1f} MB | {wrote:.1f} s | {times} |")


if __name__ == "__main__":
    main()
