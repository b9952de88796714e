import re
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from bdg.commands.cells import Point, literal, names, points
from bdg.commands.compose import open_hydra

PARSER = OverridesParser.create(open_hydra().config_loader)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii")),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
).filter(lambda value: "${" not in str(value))


def test_cells_grid_and_seeds_multiply() -> None:
    found = points({"a": {}, "b": {"x": 1}}, {"y": [1, 2], "z": [[1, 2], None]}, [0, 1])

    assert len(found) == 2 * 2 * 2 * 2
    assert found[0].changes == {"y": 1, "z": [1, 2], "seed": 0}
    assert found[-1].changes == {"x": 1, "y": 2, "z": None, "seed": 1}


def test_experiments_of_a_cell_and_of_the_grid_add_up() -> None:
    (found,) = points({"a": {"experiment": "one"}}, {"experiment": [["two", "three"]]})

    assert found.changes["experiment"] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("cells", "grid", "seeds", "message"),
    [
        ({}, {}, [], "the sweep is empty"),
        ({}, {"stage.lambda": 0.1}, [], r"sweep.grid.stage.lambda=0.1 is not a list: .*\[0.1\]"),
        ({}, {"stage.lambda": []}, [], r"sweep.grid.stage.lambda=\[\] has no values"),
        ({}, {}, 3, "sweep.seeds=3 is not a list"),
        ({"a": {"seed": 1}}, {}, [0, 1], "seed is set by the cell 'a' and varied by the grid"),
        ({"a": 3}, {}, [], "sweep.cells.a=3 is not {key: value, ...}"),
    ],
)
def test_what_is_no_sweep_is_refused(cells: Any, grid: Any, seeds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points(cells, grid, seeds)


def test_a_name_says_what_varies() -> None:
    asked = points({}, {"stage.lambda": [0.05], "glcm.scales": [[1, 2, 4]], "network": ["S"]})

    assert names(asked) == ["lambda=0.05,scales=1-2-4,network=S"]


def test_keys_that_end_alike_keep_what_tells_them_apart() -> None:
    (name,) = names([Point("", {}, {"max_steps.bridging": 1, "max_steps.restoration": 2, "trainer.max_steps": 3})])

    assert name == "bridging=1,restoration=2,max_steps=3"
    (name,) = names([Point("", {}, {"data.seed": 1, "seed": 2})])
    assert name == "data.seed=1,seed=2"


@given(st.lists(st.dictionaries(st.sampled_from(["a.b", "c.b", "d"]), VALUES), min_size=1, max_size=8), st.text())
def test_names_are_valid_for_files_and_all_different(grids: list[dict[str, Any]], cell: str) -> None:
    found = names([Point(cell, {}, grid) for grid in grids])

    assert len({*found}) == len(found)
    assert all(re.fullmatch(r"[\w.+=,-]*", name) and len(name) < 150 for name in found)


@given(VALUES)
def test_a_literal_is_read_as_the_value_it_was(value: Any) -> None:
    (override,) = PARSER.parse_overrides([f"key={literal(value)}"])

    assert repr(override.value()) == repr(value)
