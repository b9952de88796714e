import pytest
import torch

from bdg.schedule import Schedule

PUBLISHED = {999: (0.9936472, 0.99997982, 0.9005), 332: (0.43362132, 0.82414513, 0.0998777)}


@pytest.mark.parametrize("t", PUBLISHED)
def test_coefficients_are_those_of_the_method_to_7_digits(t: int) -> None:
    found = Schedule().at(torch.tensor([t]), torch.float64)

    for value, published in zip(found, PUBLISHED[t], strict=True):
        assert value.item() == pytest.approx(published, abs=5e-8)


def test_the_clean_end_has_no_residual_no_noise_and_no_condition() -> None:
    assert [c.item() for c in Schedule().at(torch.tensor([-1]))] == [0, 0, 0]


def test_the_noise_of_the_first_step_is_a_hundredth() -> None:
    assert Schedule().at(torch.tensor([0]), torch.float64).beta_bar.item() == pytest.approx(0.01, abs=1e-12)


def test_curves_rise_and_stay_in_0_to_1() -> None:
    schedule = Schedule()

    for curve in (schedule.alpha_bar, schedule.beta_bar, schedule.delta_bar):
        assert (curve.diff() > 0).all()
        assert curve[0] == 0
        assert curve[-1] <= 1


def test_a_path_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        Schedule(num_steps=0)


@pytest.mark.parametrize("wrong", [{"b_range": [0.0, 0.02]}, {"b_range": [0.5, 1.0]}, {"delta_range": [0.2, 0.1]}])
def test_a_range_that_is_none_is_refused(wrong: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="two rising numbers"):
        Schedule(**wrong)  # type: ignore[arg-type]
