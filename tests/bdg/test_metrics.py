"""Numbers agree with the field's reference code, and do not depend on how images are spread over batches and ranks."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bdg.metrics import Protocol, RestorationMetrics, Ssim, psnr, ssim

DEGRADATIONS = ("rain", "haze", "noise")


def images(count: int = 1, size: tuple[int, int] = (24, 31), seed: int = 0) -> torch.Tensor:
    levels = torch.randint(256, (count, 3, *size), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def near(x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + 0.3 * noise


def uint8(x: torch.Tensor) -> np.ndarray:
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("border", [0, 4])
def test_rgb_values_are_those_of_skimage_on_the_files_that_would_be_written(border):
    x = images(size=(40, 33))
    y = near(x)
    protocol = Protocol(border=border)
    a, b = (uint8(image[0])[border or None : -border or None, border or None : -border or None] for image in (y, x))
    assert psnr(protocol(y), protocol(x)).item() == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-4)
    _, full = structural_similarity(
        b, a, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    assert ssim(protocol(y), protocol(x)).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)


def test_y_is_that_of_matlab_and_spans_16_to_235():
    x = images()
    y = near(x)
    ours, theirs = Protocol("y")(y)[0, 0].numpy(), rgb2ycbcr(uint8(y[0]))[..., 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    ends = Protocol("y")(torch.tensor([-1.0, 1.0]).repeat(1, 3, 11, 1))
    assert (ends.min().item(), ends.max().item()) == pytest.approx((16, 235))


def test_rounding_is_what_an_8_bit_file_would_hold():
    x = torch.full((1, 3, 16, 16), 0.001)  # 127.6275 of 255
    assert Protocol()(x).unique().tolist() == [128.0]
    assert Protocol(round_uint8=False)(x).unique().tolist() == pytest.approx([127.6275])
    assert Protocol(round_uint8=False)(3 * torch.ones(1, 3, 2, 2)).max() == 255


def test_equal_images_count_as_100_db_and_ssim_1():
    levels = Protocol()(images(2))
    assert psnr(levels, levels).tolist() == [100.0, 100.0]
    assert ssim(levels, levels).tolist() == pytest.approx([1.0, 1.0])


def test_the_mean_is_over_images_not_over_pooled_pixels():
    clean, metrics = images(2), RestorationMetrics(("rain",))
    restored = torch.cat([near(clean[:1]), clean[1:] + 0.02])
    metrics.update(restored, clean, restored, torch.zeros(2, dtype=torch.long))
    single = [psnr(Protocol()(restored[i : i + 1]), Protocol()(clean[i : i + 1])).item() for i in range(2)]
    assert metrics.compute()["rain"]["psnr"] == pytest.approx(np.mean(single), abs=1e-4)


def test_the_table_has_one_row_per_degradation_seen_and_their_unweighted_mean():
    clean, metrics = images(3), RestorationMetrics(DEGRADATIONS, Protocol("y"))
    metrics.update(near(clean), clean, near(clean, 2), torch.tensor([0, 0, 2]))
    table = metrics.compute()
    assert list(table) == ["rain", "noise", "mean"]
    assert table["mean"]["psnr"] == pytest.approx((table["rain"]["psnr"] + table["noise"]["psnr"]) / 2)
    assert table["rain"]["gain"] == pytest.approx(table["rain"]["psnr"] - table["rain"]["psnr_input"])
    assert [row["num_images"] for row in table.values()] == [2, 1, 3]
    assert [row["degradation"] for row in metrics.per_image()] == ["rain", "rain", "noise"]
    assert metrics.per_image()[2]["psnr"] == pytest.approx(table["noise"]["psnr"])


def test_an_image_that_came_twice_counts_once():
    clean, metrics = images(2), RestorationMetrics(DEGRADATIONS)
    label, index = torch.tensor([0, 0]), torch.tensor([7, 3])
    metrics.update(near(clean), clean, clean, label, index)
    once = metrics.compute()
    metrics.update(near(clean), clean, clean, label, index)
    assert metrics.compute() == once
    assert [row["index"] for row in metrics.per_image()] == [3, 7]


def measured(order: list[int]) -> RestorationMetrics:
    clean, metrics = images(5), RestorationMetrics(DEGRADATIONS)
    for i in order:
        batch = slice(i, i + 1)
        metrics.update(
            near(clean)[batch], clean[batch], near(clean, 2)[batch], torch.tensor([i % 3]), torch.tensor([i])
        )
    return metrics


def test_the_order_of_the_images_does_not_change_the_table():
    assert measured([0, 1, 2, 3, 4]).compute() == measured([3, 1, 4, 0, 2]).compute()


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    metrics = measured([[4, 0, 1], [2, 3, 0], []][rank])  # image 0 twice; the last rank has none
    torch.save((metrics.compute(), metrics.per_image()), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_three_uneven_ranks_report_what_one_reports(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=3)
    alone = measured([0, 1, 2, 3, 4])
    for rank in range(3):
        assert torch.load(tmp_path / str(rank), weights_only=True) == (alone.compute(), alone.per_image())


def test_images_smaller_than_a_window_and_unknown_colours_are_refused():
    small = images(size=(30, 3))
    with pytest.raises(ValueError, match=r"30 x 3 pixels is too small .* need 11 x 11"):
        RestorationMetrics(DEGRADATIONS).update(small, small, small, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"color='lab': choose one of \['rgb', 'y', 'y_uint8'\]"):
        Protocol("lab")
    with pytest.raises(ValueError, match="border=-1"):
        Protocol(border=-1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_images_is_an_error_not_a_number():
    with pytest.raises(ValueError, match="no image was measured"):
        RestorationMetrics(DEGRADATIONS).compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_protocol_is_a_collection_of_metrics_that_carry_its_name():
    clean, collection = images(3), Protocol("y", 4).collection()
    collection.update(near(clean), clean, torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0]))
    collection.update(near(clean), clean, torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0]))  # counts once
    table = RestorationMetrics(DEGRADATIONS, Protocol("y", 4))
    table.update(near(clean), clean, clean, torch.tensor([0, 0, 1]))
    found = collection.compute()
    assert found.keys() == {"psnr_y_border4", "ssim_y_border4"}
    assert found["psnr_y_border4"].item() == pytest.approx(table.compute()["mean"]["psnr"], rel=1e-6)
    collection.reset()
    with pytest.raises(ValueError, match="no image was measured"):
        collection.compute()


def test_metrics_are_reset_for_the_next_validation():
    clean, metrics = images(2), RestorationMetrics(DEGRADATIONS)
    for restored in (near(clean), clean):
        metrics.update(restored, clean, near(clean), torch.tensor([0, 1]))
        table = metrics.compute()
        metrics.reset()
    assert (table["mean"]["psnr"], table["mean"]["num_images"]) == (100, 2)


def test_a_multiple_is_cropped_around_the_centre():
    x = torch.arange(35.0).expand(1, 3, 35, 35) / 127.5 - 1
    levels = Protocol(multiple=16)(x)
    assert levels.shape[-2:] == (32, 32)
    assert (levels[0, 0, 0, 0].item(), levels[0, 0, 0, -1].item()) == (1, 32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Ssim(padding="zeros"), "ssim.padding=zeros: choose one of inside, replicate, reflect"),
        (lambda: Ssim(size=8), "ssim.size=8: give an odd number"),
        (lambda: Protocol(multiple=0), "protocol.multiple=0"),
        (lambda: Protocol(measures={}), "protocol.measures is empty"),
        (lambda: Protocol().without_reference(), "psnr, ssim compare with clean images, and there are none"),
    ],
)
def test_what_is_no_protocol_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_protocol_says_what_it_does():
    assert str(Protocol("y", 4)).startswith("Y of BT.601 (16..235), border 4, rounded to uint8, mean over images")
