import pytest
import torch

from bdg.networks.discriminator import Discriminator


@pytest.mark.parametrize("levels", [8, 16, 32, 64, 256])
@pytest.mark.parametrize("channels", [1, 12])
def test_encoder_reads_a_matrix_of_any_number_of_levels(levels: int, channels: int) -> None:
    encoder = Discriminator(channels, 32, 5).encoder

    assert encoder(torch.rand(2, channels, levels, levels)).shape == (2, 256)


def test_encoder_tells_the_smallest_matrices_apart() -> None:
    encoder = Discriminator(1, 32, 5).encoder
    one, other = encoder(torch.rand(2, 1, 8, 8))

    assert (one - other).abs().mean() > 1e-3


def test_projections_meet_on_the_unit_sphere() -> None:
    discriminator = Discriminator(1, 32, 5, width=64)
    assert discriminator.project_mas is not None
    assert discriminator.project_diff is not None
    z_mas, z_diff = discriminator.project_mas(torch.randn(4, 64)), discriminator.project_diff(torch.randn(4, 32))

    assert z_mas.shape == z_diff.shape == (4, 64)
    torch.testing.assert_close(z_mas.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(z_diff.norm(dim=1), torch.ones(4))


def test_temperature_starts_at_seven_hundredths_and_learns() -> None:
    discriminator = Discriminator(1, 32, None)
    assert discriminator.temperature is not None
    discriminator.temperature.backward()

    assert discriminator.temperature.item() == pytest.approx(0.07)
    assert discriminator.tau is not None
    assert discriminator.tau.grad == 1


@pytest.mark.parametrize(("tau", "temperature"), [(-1.0, 0.001), (0.3, 0.3), (7.0, 0.5)])
def test_temperature_stays_in_its_range_and_can_come_back(tau: float, temperature: float) -> None:
    discriminator = Discriminator(1, 32, None)
    assert discriminator.tau is not None
    discriminator.tau.data.fill_(tau)
    assert discriminator.temperature is not None
    discriminator.temperature.backward()

    assert discriminator.temperature.item() == pytest.approx(temperature, rel=1e-4)
    assert discriminator.tau.grad == 1


def test_what_no_loss_needs_is_not_built() -> None:
    encoder_only = Discriminator(1, 32, None, bridge=False)
    whole = Discriminator(1, 32, 5)

    assert {name.split(".")[0] for name in encoder_only.state_dict()} == {"encoder"}
    assert encoder_only.temperature is None
    assert {name.split(".")[0] for name in whole.state_dict()} == {
        "encoder",
        "project_mas",
        "project_diff",
        "tau",
        "classifier",
    }


def test_classifier_has_one_logit_per_degradation() -> None:
    discriminator = Discriminator(1, 32, 7)
    assert discriminator.classifier is not None

    assert discriminator.classifier(torch.randn(3, 256)).shape == (3, 7)
