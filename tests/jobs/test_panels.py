"""Which panels a sweep gets by what it varies."""

from jobs.panels import KINDS, heat_keys, label, panels, values, varied

GRID = [
    {"stage.lambda": w, "glcm.scales": s, "seed": n} for w in (0.1, 0.05) for s in ([1, 2, 4], [1, 2]) for n in (0, 1)
]


def test_a_grid_gets_a_curve_over_its_number_and_a_heat_map_of_both_keys() -> None:
    found = {panel.kind: panel for panel in panels(GRID)}
    assert set(found) == set(KINDS)
    assert (found["curve"].x, found["curve"].lines) == ("stage.lambda", ("glcm.scales",))
    assert (found["heat"].x, found["heat"].y) == ("stage.lambda", "glcm.scales")
    assert found["heat"].metrics == ("val/*/psnr",)


def test_seeds_alone_get_neither() -> None:
    found = [panel.kind for panel in panels([{"seed": 0}, {"seed": 1}], "ssim")]
    assert not {"curve", "heat", "parallel", "importance"} & set(found)
    assert "bars" in found


def test_angles_and_scales_precede_other_pairs() -> None:
    assert heat_keys(["stage.lambda", "glcm.scales", "glcm.angles"]) == ("glcm.angles", "glcm.scales")


def test_values_are_in_their_own_order_and_the_seed_is_no_key() -> None:
    assert varied(GRID) == ["stage.lambda", "glcm.scales"]
    assert values(GRID, "stage.lambda") == [0.05, 0.1]
    assert values(GRID, "glcm.scales") == [[1, 2], [1, 2, 4]]


def test_labels_are_short() -> None:
    shown = [label(value) for value in ([1, 2], [0, 0.392699, 1, 2, 3.141593], None, True, 1e-4, "demo")]
    assert shown == ["[1, 2]", "[0, …, 3.142] (5)", "as it is", "true", "0.0001", "demo"]
