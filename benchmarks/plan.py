"""Planning a sweep: seconds for 10^2, 10^3 and 10^4 cells of three stages, and how they grow.

    python benchmarks/plan.py
    python benchmarks/plan.py --cells 100 400

Cells vary lambda, the scales of the GLCM and the seed; nothing is trained, and the shards are an empty file. `composing` is
the time of one config, which a plan that composed each stage of each cell would need that many times. Prints markdown.
"""

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from circumstances import circumstances

from bdg.commands.cells import points
from bdg.commands.planning import plan_cells
from bdg.commands.request import Request
from bdg.commands.sweep import states, write_folder
from jobs.plan import Plan

SEEDS = 5
SCALES = [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]
WORDS = ("experiment=demo", "data=shards", "data.shards=train-000000.tar")


def timed(cells: int) -> tuple[Plan, list[float]]:
    """Seconds of the CPU for the plan, for the state of each run, and for the sweep's folder; of the clock for all."""
    lambdas = [number / 1000 for number in range(1, cells // SEEDS // len(SCALES) + 1)]
    begun, clock = time.monotonic(), [time.process_time()]
    asked = points({}, {"stage.lambda": lambdas, "glcm.scales": SCALES}, [*range(SEEDS)])
    plan = plan_cells(Request("train", WORDS), asked, f"cells{cells}", one_stage=False).plan
    clock.append(time.process_time())
    states(plan)
    clock.append(time.process_time())
    write_folder(plan, {}, WORDS)
    clock.append(time.process_time())
    return plan, [*(end - start for start, end in pairwise(clock)), time.monotonic() - begun]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10000])
    arguments, home = parser.parse_args(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("train-000000.tar").write_bytes(b"")
        Request("train", WORDS).compose()  # imports and caches
        begun = time.process_time()
        Request("train", WORDS).compose()
        composing = time.process_time() - begun
        rows = []
        for cells in arguments.cells:
            plan, seconds = timed(cells)
            rows.append((len(plan.cells), len(plan.tasks), *seconds))
        os.chdir(home)
    print(f"# Planning a sweep\n\n{circumstances('hydra-core', 'omegaconf')}\n")
    print(f"composing one config: {composing:.3f} s of the CPU\n")
    print("| cells | runs | plan, CPU s | states, CPU s | folder, CPU s | all, clock s | plan: CPU ms a cell |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for cells, runs, plan_s, states_s, folder_s, all_s in rows:
        print(
            f"| {cells} | {runs} | {plan_s:.2f} | {states_s:.2f} | {folder_s:.2f} | {all_s:.2f} | {1000 * plan_s / cells:.2f} |"
        )


if __name__ == "__main__":
    main()
