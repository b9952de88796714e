"""Curves out of csv files as trainings leave them: restarted, cut off, damaged."""

from pathlib import Path

import pytest

from jobs.curves import curves, thinned


def log(run: Path, text: str, version: int = 0) -> None:
    path = run / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode())


def test_columns_are_curves_by_step(tmp_path: Path) -> None:
    log(tmp_path, "epoch,loss/total,step,val/rain/psnr_input,val/mean/psnr\n0,0.5,9,,\n0,,19,15,20.5\n")
    assert curves(tmp_path) == {"loss/total": {9: 0.5}, "val/mean/psnr": {19: 20.5}}


def test_a_restart_goes_on_and_replaces_what_was_done_again(tmp_path: Path) -> None:
    log(tmp_path, "step,loss\n1,0.5\n2,0.4\n", 9)
    log(tmp_path, "step,loss\n2,0.3\n3,0.2\n", 10)
    assert curves(tmp_path) == {"loss": {1: 0.5, 2: 0.3, 3: 0.2}}


@pytest.mark.parametrize(
    "rest", ["3,0", "3", "", "\0\0\0", '3,"', "x,y\n", "3,nan\n", "3,0.1,7\n", "inf,1\n", "\xff\n"]
)
def test_lines_that_are_half_written_or_no_numbers_are_passed_over(rest: str, tmp_path: Path) -> None:
    log(tmp_path, f"step,loss\n1,0.5\n2,0.4\n{rest}")
    found = curves(tmp_path)["loss"]
    assert {1: 0.5, 2: 0.4}.items() <= found.items()


@pytest.mark.parametrize("text", ["", "loss\n1\n", "\0"])
def test_a_file_without_steps_has_no_curves(text: str, tmp_path: Path) -> None:
    log(tmp_path, text)
    assert curves(tmp_path) == {}


def test_a_run_that_is_gone_has_no_curves(tmp_path: Path) -> None:
    assert curves(tmp_path / "gone") == {}


def test_long_curves_are_thinned_by_means_of_neighbours() -> None:
    assert thinned({3: 4.0, 1: 1.0, 2: 2.0, 4: 5.0}, 2) == [[2, 4], [1.5, 4.5]]
    assert thinned({1: 1 / 3}, 5) == [[1], [0.33333]]
    assert thinned({}, 5) == [[], []]
