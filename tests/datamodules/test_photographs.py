import re
from pathlib import Path

import numpy as np
import yaml

from datamodules.images import decode

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "datamodules" / "photographs"
PERMITS = ("CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "public domain")


def rows() -> list[list[str]]:
    lines = (FOLDER / "ATTRIBUTION.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \S+\.jpg ", line)]


def test_every_photograph_is_attributed_and_nothing_else_is():
    assert sorted(row[0] for row in rows()) == sorted(path.name for path in FOLDER.glob("*.jpg"))


def test_every_attribution_has_title_author_licence_source_and_change():
    assert all(len(row) == 6 and all(row) for row in rows())


def test_every_licence_permits_redistribution():
    assert {row[3] for row in rows()} <= set(PERMITS)


def test_photographs_are_in_colour_and_take_at_most_four_megabytes():
    images = [decode(path.read_bytes()) for path in FOLDER.glob("*.jpg")]
    assert all(max(image.shape[:2]) <= 512 and np.ptp(image.astype(int), axis=2).max() > 32 for image in images)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_split_of_the_photographs_names_photographs_that_exist_each_in_one_part():
    split = yaml.safe_load((ROOT / "conf" / "parts" / "photographs.yaml").read_text())
    named = [*split["val"], *split["test"]]
    assert len(named) == len(set(named)) == 8
    assert set(named) <= {path.stem for path in FOLDER.glob("*.jpg")}
    assert split["train"] == "rest"
