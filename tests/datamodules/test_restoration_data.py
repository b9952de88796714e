import json
import pickle
import random
from collections import Counter
from itertools import chain, islice

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from datamodules import restoration, shards
from datamodules.degradations.haze import Haze
from datamodules.degradations.noise import GaussianNoise
from datamodules.images import decode
from datamodules.pack import pack
from datamodules.pipeline import to_float
from datamodules.restoration import RestorationData

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than a small machine has cores
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning's own
]

FIELDS = ("x_hq", "x_lq", "label", "severity", "index", "key", "recipe")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def joined(batches: list[dict]) -> dict:
    """The batches of several ranks as one."""
    columns = {k: [batch[k] for batch in batches] for k in batches[0]}
    return {k: torch.cat(v) if isinstance(v[0], torch.Tensor) else list(chain(*v)) for k, v in columns.items()}


def test_batch_has_what_was_agreed(packed, data):
    handed_over = next(iter(data(packed).stream()))
    assert tuple(handed_over) == FIELDS
    assert handed_over["x_hq"].shape == handed_over["x_lq"].shape == (4, 16, 16, 3)
    assert {handed_over[k].dtype for k in ("x_hq", "x_lq")} == {torch.uint8}
    batch = data(packed).on_after_batch_transfer(handed_over, 0)
    assert tuple(batch) == FIELDS
    assert batch["x_hq"].shape == batch["x_lq"].shape == (4, 3, 16, 16)
    assert {batch[k].dtype for k in ("x_hq", "x_lq", "severity")} == {torch.float32}
    assert {batch[k].dtype for k in ("label", "index")} == {torch.int64}
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert all(isinstance(key, str) for key in batch["key"])
    assert json.loads(json.dumps(batch["recipe"])) == batch["recipe"]


def test_images_are_in_range_and_rounded_to_eight_bits(packed, data):
    batch = to_float(next(iter(data(packed).stream())))
    for x in (batch["x_hq"], batch["x_lq"]):
        levels = (x + 1) * 127.5
        assert -1 <= x.min() < x.max() <= 1
        assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_recipe_replayed_on_x_hq_gives_x_lq(packed, data):
    batch = to_float(next(iter(data(packed).stream())))
    for x_hq, x_lq, recipe, label in zip(*(batch[k] for k in ("x_hq", "x_lq", "recipe", "label")), strict=True):
        degrade = (GaussianNoise(), Haze())[int(label)]
        clean = ((x_hq.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.float32) / np.float32(255)
        assert np.allclose(np.rint(degrade.replay(clean, recipe) * 255) / 127.5 - 1, x_lq.permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (1, 3), (2, 0), (2, 1), (4, 0)])
def test_stream_is_the_same_whatever_the_ranks_and_workers(packed, data, world_size, num_workers):
    alone = islice(data(packed).stream(), 5)
    ranks = [data(packed, num_workers=num_workers).stream(0, rank, world_size) for rank in range(world_size)]
    together = [joined(list(parts)) for parts in islice(zip(*ranks, strict=True), 5)]
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))


def test_stream_begun_later_is_the_rest_of_the_stream(packed, data):
    later = list(islice(data(packed, num_workers=2).stream(step=3), 3))
    whole = list(islice(data(packed).stream(), 6))
    assert all(equal(a, b) for a, b in zip(whole[3:], later, strict=True))


def test_pipeline_can_be_sent_to_a_worker_that_is_not_a_fork(packed, data):
    loader = data(packed).stream()
    dataset = loader.pipeline[0].dataset
    assert equal(next(iter(pickle.loads(pickle.dumps(dataset)))).batch(), next(iter(loader)))


def test_images_that_are_kept_are_those_that_are_decoded_anew(packed, data, monkeypatch):
    kept = list(islice(data(packed).stream(), 4))
    monkeypatch.setattr(restoration, "KEPT_BYTES", 0)
    assert all(equal(a, b) for a, b in zip(kept, islice(data(packed).stream(), 4), strict=True))


def test_other_seed_is_another_stream(packed, data):
    first, other = (next(iter(data(packed, seed=seed).stream())) for seed in (3, 4))
    assert not torch.equal(first["x_hq"], other["x_hq"])


def test_generators_of_the_host_are_neither_read_nor_moved(packed, data):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = next(iter(data(packed).stream()))
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert equal(first, next(iter(data(packed).stream())))


def test_every_photograph_comes_once_per_epoch(packed, data):
    keys = joined(list(islice(data(packed, batch_size=1).stream(), 21)))["key"]
    assert [Counter(keys[i : i + 7]) for i in (0, 7, 14)] == [Counter(f"photo{i}" for i in range(7))] * 3


def test_same_photograph_looks_different_in_another_epoch(packed, data):
    batches = list(islice(data(packed, batch_size=7).stream(), 2))
    first, second = (dict(zip(b["key"], b["x_hq"], strict=True)) for b in batches)
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_degradations_are_balanced_in_every_batch_that_is_a_multiple_of_them(packed, data):
    batches = list(islice(data(packed).stream(), 8))
    assert all(batch["label"].bincount().tolist() == [2, 2] for batch in batches)
    assert len({tuple(batch["label"].tolist()) for batch in batches}) > 1
    assert all(
        r["degradation"] == ("noise", "haze")[n] for b in batches for r, n in zip(b["recipe"], b["label"], strict=True)
    )


def test_fewer_photographs_than_the_batch_are_repeated(packed, data):
    batch = next(iter(data(packed, batch_size=16).stream()))
    assert len(batch["key"]) == 16
    assert max(Counter(batch["key"]).values()) == 3


def test_flip_mirrors_half_of_the_crops(packed, clean, data):
    images = {path.stem: decode(path.read_bytes()) for path in clean.iterdir()}
    batch = joined(list(islice(data(packed, crop=40).stream(), 20)))
    mirrored = 0
    for key, crop in zip(batch["key"], batch["x_hq"].numpy(), strict=True):
        places = [images[key][:, i : i + 40] for i in range(9)]
        plain, mirror = (any(np.array_equal(piece, place) for place in places) for piece in (crop, crop[:, ::-1]))
        assert plain != mirror
        mirrored += mirror
    assert 25 <= mirrored <= 55  # of 80


def test_generation_sees_the_same_clean_images_whatever_the_degradations(packed, data):
    one, two = data(packed, degradations={"noise": GaussianNoise(1)}), data(packed)
    assert torch.equal(next(iter(one.stream()))["x_hq"], next(iter(two.stream()))["x_hq"])


def test_pairs_come_as_they_are_with_their_own_label(paired, data):
    for batch in islice(data(paired, val_crop=None, crop=40).stream(), 2):
        assert batch["label"].tolist() == [1] * 4
        assert batch["severity"].isnan().all()
        assert all(
            recipe["source"] == f"gt/{key}.png" for recipe, key in zip(batch["recipe"], batch["key"], strict=True)
        )


def test_images_of_a_pair_are_cropped_and_flipped_alike(tmp_path, write, data):
    for i in range(3):
        for side in ("lq", "gt"):
            write(tmp_path / "noise" / side / f"{i}.png", i)
    pack(tmp_path / "noise", tmp_path / "out", {"train": "rest"})
    assert all(torch.equal(b["x_hq"], b["x_lq"]) for b in islice(data(tmp_path / "out").stream(), 4))


def test_name_without_a_callable_is_a_label_that_only_pairs_have(paired, packed, data):
    degradations = {"haze": None, "noise": GaussianNoise()}
    assert next(iter(data(paired, degradations=degradations).stream()))["label"].tolist() == [0] * 4
    assert next(iter(data(packed, degradations=degradations).stream()))["label"].tolist() == [1] * 4
    with pytest.raises(ValueError, match="is not a pair, and no degradation can be made"):
        data(packed, degradations={"haze": None}).stream()


def test_pair_with_an_unknown_degradation_is_an_error_of_one_line(paired, data):
    module = data(paired, degradations={"rain": None, "noise": GaussianNoise()})
    for loader in (module.stream, module.val_dataloader):
        with pytest.raises(
            ValueError, match=r"degradation 'haze', not one of rain, noise: add \+degradation\.haze=null$"
        ):
            loader()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_has_every_case_once(packed, data, world_size, num_workers):
    ranks = [
        data(packed, num_workers=num_workers).measured(f"{packed}/*.tar", r, world_size) for r in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert [len(b) for b in batches] == [len(rank) for rank in ranks]
    cases = [
        case
        for batch in chain(*batches)
        for case in zip(
            batch["index"].tolist(), batch["key"], batch["label"].tolist(), batch["severity"].tolist(), strict=True
        )
    ]
    assert sorted(index for index, *_ in cases) == list(range(7 * 2 * 2))
    assert len({tuple(rest) for _, *rest in cases}) == 7 * 2 * 2


def test_validation_is_always_the_same_also_with_another_seed_and_more_photographs(
    clean, packed, write, data, tmp_path
):
    write(clean / "another.png", 50)
    pack(clean, tmp_path / "more", {"train": "rest"}, seed=1)

    def cases(folder, seed):
        loader = data(folder, seed=seed, batch_size=1).measured(f"{folder}/*.tar")
        return {(b["key"][0], int(b["label"]), float(b["severity"])): b["x_lq"] for b in loader}

    few, many = cases(packed, 3), cases(tmp_path / "more", 4)
    assert all(torch.equal(few[case], many[case]) for case in few)


def test_whole_images_are_validated_one_by_one(packed, data):
    batch = next(iter(data(packed, val_crop=None).val_dataloader()))
    assert batch["x_hq"].shape == (1, 40, 48, 3)


def test_centred_crop_is_the_middle_of_the_image(packed, clean, data):
    batch = next(iter(data(packed).val_dataloader()))
    whole = decode((clean / f"{batch['key'][0]}.png").read_bytes())[12:28, 16:32]
    assert np.array_equal(batch["x_hq"][0], whole)


def test_severity_of_validation_can_be_left_to_the_degradation(packed, data):
    batches = list(data(packed, val_severities=None).val_dataloader())
    severities = torch.cat([b["severity"] for b in batches])
    assert len(severities) == 7 * 2
    assert len(severities.unique()) == 7 * 2


def test_own_function_as_degradation_needs_no_severity_unless_it_is_fixed(packed, data):
    def invert(x_hq, rng):
        return 1 - x_hq, {"degradation": "invert"}

    module = data(packed, degradations={"invert": invert})
    batch = next(iter(module.stream()))
    assert torch.equal(batch["x_lq"], 255 - batch["x_hq"])
    assert batch["severity"].isnan().all()
    with pytest.raises(ValueError, match=r"degradation\.invert: .* data\.val_severities=null"):
        module.val_dataloader()


def test_without_validation_shards_training_does_without_validation_and_a_warning(packed, data, tmp_path):
    module, model = data(packed), Recorder()
    module.val_shards = None
    settings = {"max_steps": 2, "enable_checkpointing": False, "val_check_interval": 1}
    trainer(tmp_path, **settings).fit(model, datamodule=module)  # warnings are errors
    assert (len(model.trained), model.validated) == (8, [])
    with pytest.raises(ValueError, match=r"no shards are named: give .*data\.val_shards"):
        trainer(tmp_path, **settings).validate(model, datamodule=module)


def test_digest_is_that_of_the_training_shards(packed, data):
    assert data(packed).digest == shards.digest(f"{packed}/train-*.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "data.crop=0: give 1 or more"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"val_crop": -1}, "data.val_crop=-1"),
        ({"degradations": {}}, "choose degradation=five"),
    ],
)
def test_settings_out_of_range_are_refused(packed, data, change, message):
    with pytest.raises(ValueError, match=message):
        data(packed, **change)


def test_batch_that_ranks_cannot_share_is_refused_with_one_that_they_can(packed, data):
    with pytest.raises(ValueError, match=r"data\.batch_size=4 .* ranks, which are 3: take a multiple, such as 6"):
        data(packed).stream(0, 0, 3)


def test_crop_larger_than_an_image_stops_at_the_start(packed, data):
    with pytest.raises(ValueError, match=r"7 of 7 images are smaller than the crop of 64 pixels, .*48x40"):
        data(packed, crop=64).setup("fit")


def test_small_image_that_is_left_out_for_its_key_stops_nothing(tmp_path, tar, write, data):
    large, small = (write(tmp_path / f"{n}.png", shape=(n, n, 3)).read_bytes() for n in (32, 8))
    (tmp_path / "set").mkdir()
    for name, image in (("1", large), ("2", small)):
        tar(tmp_path / "set" / f"{name}.tar", {"a.png": image})
    batch = next(iter(data(tmp_path / "set", on_error="skip").stream()))
    assert batch["key"] == ["a"] * 4


def test_crop_larger_than_an_image_is_one_clear_error_also_without_a_manifest(packed, data):
    (packed / "manifest.json").unlink()
    for index in packed.glob("*.index"):
        index.unlink()
    with pytest.raises(ValueError, match=r"7 of 7 images are smaller than the crop of 64 pixels, .*48x40"):
        data(packed, crop=64).stream()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_image_that_is_none_inside_a_shard_is_an_error_of_one_line(tmp_path, packed, data, num_workers):
    (packed / "manifest.json").unlink()
    for shard in packed.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x00PNG"))
    with pytest.raises(ValueError, match=r"train-00000\d\.tar: sample 'photo\d': not an image[^\n]*$"):
        next(iter(data(packed, num_workers=num_workers).stream()))


def test_missing_shards_stop_at_the_start(tmp_path, data):
    with pytest.raises(FileNotFoundError, match="bdg pack SOURCE"):
        data(tmp_path).setup("fit")


class Recorder(L.LightningModule):
    """Remembers which samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        self.trained += batch["index"].tolist()
        return self.weight * batch["x_lq"].mean()

    def validation_step(self, batch, batch_idx):
        self.validated += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    return L.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, num_sanity_val_steps=0, **quiet, **settings
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_training_sees_the_samples_that_come_next(packed, data, tmp_path, num_workers):
    steps = {"val_check_interval": 3, "check_val_every_n_epoch": None, "enable_checkpointing": False}
    first, second = Recorder(), Recorder()
    begun = trainer(tmp_path, max_steps=3, **steps)
    begun.fit(first, datamodule=data(packed, num_workers=num_workers))
    begun.save_checkpoint(tmp_path / "last.ckpt")
    resumed = trainer(tmp_path, max_steps=5, **steps)
    resumed.fit(
        second, datamodule=data(packed, num_workers=num_workers), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert first.trained == list(range(12))
    assert second.trained == list(range(12, 20))
    assert sorted(first.validated) == list(range(28))


def test_epochs_and_accumulated_gradients_do_not_repeat_samples(packed, data, tmp_path):
    model = Recorder()
    settings = {"max_epochs": 3, "limit_train_batches": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer(tmp_path, enable_checkpointing=False, log_every_n_steps=1, **settings).fit(model, datamodule=data(packed))
    assert model.trained == list(range(3 * 2 * 4))


def test_no_test_shards_is_a_clear_error(packed, data):
    with pytest.raises(ValueError, match=r"data\.test_shards"):
        data(packed).test_dataloader()


def test_only_the_tensors_of_a_batch_are_moved() -> None:
    recipe = [{"type": "rain"}]
    batch = {"x_hq": torch.zeros(1), "recipe": recipe}

    moved = RestorationData.transfer_batch_to_device(None, batch, torch.device("meta"), 0)  # type: ignore[arg-type]

    assert moved["x_hq"].is_meta
    assert moved["recipe"] is recipe
    assert not batch["x_hq"].is_meta
