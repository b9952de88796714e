"""`bdg lineage`: parents as far back as there are files, and what is said where there are none."""

import json
from pathlib import Path
from typing import Any

from bdg.cli import main

FIRST, SECOND, OUTSIDE = "a" * 12, "b" * 12, "c" * 12


def manifest(*parents: str, **more: Any) -> dict[str, Any]:
    code = {"commit": "0123456789abcdef" * 2, "diff": "fedcba987654"}
    return {"parents": parents, "data_digest": "d" * 12, "code": code, "begun": "2026-01-02"} | more


def test_a_run_has_its_parents_below_it_with_data_and_commit(made: Any, capsys: Any) -> None:
    made.run(FIRST, "done", "generation", manifest=manifest(OUTSIDE))
    made.run(SECOND, "failed", "bridging", manifest=manifest(FIRST, resumed=[{}, {}]))

    assert main(["lineage", "b", "json=lineage.json"]) == 0

    child, parent, outside = capsys.readouterr().out.splitlines()
    assert child == (
        f"bridging {SECOND} failed, data {'d' * 12}, commit 0123456789ab with changes fedcba987654, begun 2026-01-02, "
        "resumed 2 times"
    )
    assert f"generation {FIRST} done, data {'d' * 12}" in parent
    assert f"{OUTSIDE}: weights from outside, or of a run that is not here any more" in outside
    found = json.loads(Path("lineage.json").read_text())
    assert found["parents"][0]["parents"][0]["identity"] == OUTSIDE


def test_a_damaged_manifest_ends_the_tree(made: Any, capsys: Any) -> None:
    made.run(FIRST, manifest='{"parents": ["a')
    made.run(SECOND, manifest={"parents": ["../../x", 3, "*" * 12], "code": "[red]"})

    assert main(["lineage", FIRST]) == 0
    assert main(["lineage", SECOND]) == 0

    assert "data unknown, commit unknown, begun never" in capsys.readouterr().out


def test_a_circle_ends(made: Any, capsys: Any) -> None:
    made.run(FIRST, manifest=manifest(FIRST))

    assert main(["lineage", FIRST]) == 0

    assert len(capsys.readouterr().out.splitlines()) == 2
