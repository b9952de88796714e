"""The demo and its rivals at equal total steps and network, over several seeds that share one generation stage each.

    python benchmarks/demo.py [--seeds 0 1 2] [--only NAME ...] [--scale 1.0] [--jobs 2] [KEY=VALUE ...] > table.md

Runs `bdg pipeline` once per variant and seed (finished runs are found and not repeated), then prints a Markdown table of the
gain in PSNR over the degraded input on the photographs never trained on: mean over seeds and 95 % interval (Student's t).
`--scale 0.5` halves the steps of every stage. `--jobs` pipelines run at a time, which share the cores: threads of several
processes that wait for each other would slow all of them down. Further KEY=VALUE go to every pipeline.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from circumstances import circumstances

from bdg.commands.request import Request

STAGES = ("generation", "bridging", "restoration")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile by number of seeds
VARIANTS: dict[
    str, tuple[str | None, tuple[str, ...]]
] = {  # experiment, and the stages whose steps restoration also gets
    "BDG": (None, ()),
    "DiffUIR objective": ("baseline_diffuir", ("generation", "bridging")),
    "without bridging": ("ablation_without_bridging", ("bridging",)),
    "without L_cls": ("ablation_without_classify", ()),
    "from scratch": ("ablation_from_scratch", ("generation", "bridging")),
}


def overrides(variant: str, steps: dict[str, int]) -> list[str]:
    experiment, taken_over = VARIANTS[variant]
    steps = steps | {"restoration": steps["restoration"] + sum(steps[stage] for stage in taken_over)}
    chosen = "experiment=demo" if experiment is None else f"experiment=[demo,{experiment}]"
    return [chosen, *(f"max_steps.{stage}={steps[stage]}" for stage in STAGES)]


def pipeline(variant: str, seed: int, steps: dict[str, int], extra: Sequence[str], threads: int) -> dict[str, Any]:
    """The summary of one pipeline, and the seconds it took (near 0 if it had been done before)."""
    path = Path("runs") / "benchmark_demo" / f"{variant.replace(' ', '_')}_{seed}_{steps['restoration']}.json"
    begun = time.monotonic()
    bdg("pipeline", *overrides(variant, steps), f"seed={seed}", f"json='{path}'", *extra, threads=threads)
    seconds = time.monotonic() - begun
    print(f"{variant}, seed {seed}: {seconds:.0f} s", file=sys.stderr)
    return json.loads(path.read_text()) | {"seconds": seconds}


def bdg(verb: str, *words: str, threads: int) -> None:
    command = [sys.executable, "-m", "bdg", verb, "project=benchmark_demo", *words]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def interval(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) not in STUDENT_T:
        return f"{mean:+.2f}"
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ± {half:.2f}"


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    first = next(iter(found.values()))[0]
    degradations = [name for name in first["scores"] if name != "mean"]
    lines = ["| variant | " + " | ".join([*degradations, "mean", "prior noise loss at the end"]) + " |"]
    lines += ["|" + " --- |" * (len(degradations) + 3)]
    inputs = [f"{first['scores'][name]['psnr_input']:.2f} dB" for name in [*degradations, "mean"]]
    lines += ["| degraded input | " + " | ".join([*inputs, ""]) + " |"]
    for variant, runs in found.items():
        gains = [interval([run["scores"][name]["gain"] for run in runs]) for name in [*degradations, "mean"]]
        prior = interval([list(run["prior_noise_loss"].values())[-1] for run in runs]).lstrip("+")
        lines += [f"| {variant} | " + " | ".join([*gains, prior]) + " |"]
    return "\n".join([*lines, "", f"Protocol: {first['protocol']['text']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    config = Request("pipeline", ("experiment=demo",)).compose()
    steps = {stage: round(config.max_steps[stage] * options.scale) for stage in STAGES}
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        # before the pipelines that share it: two of them must not train it at a time
        shared = [*overrides("BDG", steps), "stage=generation", *options.overrides]
        list(pool.map(lambda seed: bdg("train", *shared, f"seed={seed}", threads=threads), options.seeds))
        running = {
            (variant, seed): pool.submit(pipeline, variant, seed, steps, options.overrides, threads)
            for seed in options.seeds
            for variant in options.only
        }
        found = {variant: [running[variant, seed].result() for seed in options.seeds] for variant in options.only}
    print(f"# The demo and its rivals\n\n{circumstances('torch')}\n")
    print(f"No GPU, {options.jobs} pipelines at a time, steps {steps}.\n")
    print(f"Gain in PSNR over the degraded input, dB; mean and 95 % interval over seeds {options.seeds}.\n")
    print(report(found))
    print("\nSeconds per pipeline (shared machine; stages found done cost nothing):\n")
    for variant, runs in found.items():
        print(f"- {variant}: " + ", ".join(f"{run['seconds']:.0f}" for run in runs))


if __name__ == "__main__":
    main()
