"""Kills and resumes trainings of the demo in one process and in two, and compares them with the unbroken ones.

    python benchmarks/verify_resume.py [KEY=VALUE ...] > table.md

Runs `bdg verify-resume experiment=demo` with `ranks=1` and with `ranks=2`; KEY=VALUE go to both. Exits with 1 where a training
is not the unbroken one.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from circumstances import circumstances

from bdg.commands.verify_resume import COLUMNS


def main(overrides: Sequence[str]) -> int:
    bdg = [sys.executable, "-m", "bdg"]
    pack = ["pack", "pkg://datamodules/photographs", "runs/photographs", "parts=photographs"]
    subprocess.run([*bdg, *pack], check=True, stdout=subprocess.DEVNULL)
    status, lines = 0, [f"| ranks | training | killed | {' | '.join(COLUMNS)} |", "|" + " --- |" * (3 + len(COLUMNS))]
    steps, seconds = 0, []
    for ranks in (1, 2):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "found.json"
            words = ["experiment=demo", f"ranks={ranks}", f"json={found}", *overrides]
            status |= subprocess.run([*bdg, "verify-resume", *words], stdout=sys.stderr).returncode
            result = json.loads(found.read_text())
        seconds.append(time.monotonic() - begun)
        steps = result["steps"]
        for row in result["trainings"]:
            cells = [ranks, row["training"], ", ".join(row["killed"]) or "-", *(row[column] for column in COLUMNS)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    head = f"# Trainings of {steps} steps, killed and resumed, beside the unbroken one"
    took = " and ".join(f"{span / 60:.0f} min" for span in seconds)
    print("\n".join([head, "", circumstances("torch", "lightning"), f"They took {took}.", "", *lines]))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
