"""How long the checks of a sweep of lambda x scales x angles take, by the number of cells. No GPU. Prints markdown.

python benchmarks/preflight.py data.root=shards
"""

import sys
import time

from circumstances import circumstances

from bdg.commands.cells import points
from bdg.commands.checks import Checks
from bdg.commands.findings import check, of_plan
from bdg.commands.planning import plan_cells
from bdg.commands.request import Request

ANGLES = [[0.0], [0.0, 1.5708], [0.0, 0.7854, 1.5708, 2.3562], [0.0, 0.5236, 1.0472], [0.0, 0.3927, 0.7854, 1.1781]]
SCALES = [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8], [1, 2, 3, 4, 5, 6]]


def grid(num_lambdas: int) -> dict[str, list]:
    """25 num_lambdas cells."""
    lambdas = [round(0.01 * (1 + k), 4) for k in range(num_lambdas)]
    return {"stage.lambda": lambdas, "glcm.scales": SCALES, "glcm.angles": ANGLES}


def measured(request: Request, num_lambdas: int) -> str:
    begun = time.perf_counter()
    plan = plan_cells(request, points({}, grid(num_lambdas)), "preflight", one_stage=False)
    at_plan = time.perf_counter()
    works = of_plan(plan)
    at_configs = time.perf_counter()
    checks = Checks()
    findings = check(works, checks=checks)
    end = time.perf_counter()
    seconds = (f"{span:.2f}" for span in (at_plan - begun, at_configs - at_plan, end - at_configs, end - begun))
    return (
        " | ".join((f"| {25 * num_lambdas}", f"{len(works)}", f"{checks.num_built}", f"{len(findings)}", *seconds))
        + " |"
    )


def main(words: list[str]) -> None:
    print("# Checking a sweep before it is submitted\n")
    print("| cells | stages | models built | findings | plan s | configs s | checks s | all s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_lambdas in (1, 4, 40):
        print(measured(Request("train", ("experiment=all_in_one", *words)), num_lambdas), flush=True)
    print(f"\n{circumstances('torch', 'hydra-core')}")


if __name__ == "__main__":
    main(sys.argv[1:])
