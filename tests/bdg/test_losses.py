import dataclasses

import pytest
import torch
from torch.nn import functional as F

from bdg import losses
from bdg.types import Estimate, Step


def step(**changed: object) -> Step:
    g = torch.Generator().manual_seed(0)
    x_hq, x_lq, noise, residual_head, noise_head, believed = torch.randn(6, 4, 3, 5, 5, generator=g)
    z_mas, z_diff = F.normalize(torch.randn(2, 4, 8, generator=g), dim=-1)
    made = Step(
        truth=Estimate(x_hq, x_lq - x_hq, noise),
        estimate=Estimate(believed, residual_head, noise_head),
        residual_head=residual_head,
        noise_head=noise_head,
        alpha=torch.full((4, 1, 1, 1), 1e-3),
        noise_removal=torch.full((4, 1, 1, 1), 2e-3),
        label=torch.tensor([0, 1, 0, 2]),
        f_mas=torch.randn(4, 8, generator=g),
        z_mas=z_mas,
        z_diff=z_diff,
        logits=torch.randn(4, 3, generator=g),
        temperature=torch.tensor(0.07),
    )
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


def test_terms_vanish_for_a_perfect_network() -> None:
    truth = step().truth
    perfect = step(estimate=truth, residual_head=truth.residual, noise_head=truth.noise)

    for term in (losses.Residual(), losses.Noise("l2"), losses.Restored(), losses.Joint()):
        assert term(perfect) == 0


def test_l1_and_l2_are_means_over_all_values() -> None:
    made = step()
    error = made.noise_head - made.truth.noise

    torch.testing.assert_close(losses.Noise()(made), error.abs().mean())
    torch.testing.assert_close(losses.Noise("l2")(made), (error**2).mean())


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_relative_loss_of_the_degraded_image_itself_is_1_however_strong_the_degradation(norm: str) -> None:
    truth = step().truth
    for strength in (0.3, 3.0):
        residual = strength * truth.residual
        unrestored = Estimate(truth.x_hq + residual, truth.residual, truth.noise)
        made = step(truth=Estimate(truth.x_hq, residual, truth.noise), estimate=unrestored)

        assert losses.Restored(norm, relative=1)(made) == pytest.approx(1, abs=0.05)  # but for the floor of faint ones
        torch.testing.assert_close(losses.Restored(norm)(made), losses.DISTANCES[norm](residual, 0 * residual))


def test_relative_is_a_share() -> None:
    with pytest.raises(ValueError, match="relative=2"):
        losses.Restored(relative=2)


def test_joint_lets_the_heads_trade_errors() -> None:
    made = step()
    shift = torch.ones_like(made.residual_head)
    traded = step(residual_head=made.residual_head + 2 * shift, noise_head=made.noise_head - shift)

    torch.testing.assert_close(losses.Joint()(traded), losses.Joint()(made))


def test_bridge_is_clip_s_symmetric_cross_entropy() -> None:
    made = step()
    assert made.z_mas is not None
    assert made.z_diff is not None
    S = made.z_mas @ made.z_diff.T / 0.07
    own = torch.arange(4)

    expected = (F.cross_entropy(S, own) + F.cross_entropy(S.T, own)) / 2

    torch.testing.assert_close(losses.Bridge()(made), expected)


def test_bridge_with_class_targets_does_not_ask_to_tell_equal_labels_apart() -> None:
    """Images 0 and 2 have one label: with all features of a class equal the loss is as low as it can be, log 2 there."""
    z = F.one_hot(torch.tensor([0, 1, 0, 2]), 8).float()
    made = step(z_mas=z, z_diff=z, temperature=torch.tensor(0.01))

    torch.testing.assert_close(losses.Bridge(targets="class")(made), torch.log(torch.tensor(2.0)) / 2)


def test_negative_pushes_apart_and_its_literal_sign_pulls_together() -> None:
    f_mas = torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 0.2], [1.0, 0.0]], requires_grad=True)
    (push,) = torch.autograd.grad(losses.Negative()(step(f_mas=f_mas)), f_mas)
    (pull,) = torch.autograd.grad(losses.Negative(literal=True)(step(f_mas=f_mas)), f_mas)

    apart = losses.mean_pairwise_cosine((f_mas - 0.1 * push).detach())
    together = losses.mean_pairwise_cosine((f_mas - 0.1 * pull).detach())

    assert apart < losses.mean_pairwise_cosine(f_mas.detach()) < together


def test_features_at_right_angles_are_negative_enough() -> None:
    assert losses.Negative()(step(f_mas=torch.eye(4))) == 0


def test_mean_pairwise_cosine_is_1_for_a_collapsed_encoder() -> None:
    assert losses.mean_pairwise_cosine(torch.ones(5, 8)).item() == pytest.approx(1)


def test_off_diagonal_leaves_out_exactly_the_diagonal() -> None:
    square = torch.arange(9).reshape(3, 3).float()

    assert losses.off_diagonal(square).tolist() == [1, 2, 3, 5, 6, 7]


def test_only_terms_with_a_weight_are_active() -> None:
    terms = {"noise": losses.Noise(), "bridge": losses.Bridge()}

    assert list(losses.active({"noise": 1, "bridge": 0}, terms)) == ["noise"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"nose": 1}, "stage.weights names .'nose'."), ({"noise": 0}, "all of stage.weights are 0")],
)
def test_weights_that_name_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.active(weights, {"noise": losses.Noise()})


@pytest.mark.parametrize("term", [losses.Residual, losses.Noise, losses.Restored])
def test_an_unknown_norm_is_refused(term: type) -> None:
    with pytest.raises(ValueError, match="norm='l3'"):
        term(norm="l3")
