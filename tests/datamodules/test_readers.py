"""Both readers over ranks, workers and restarts; quotas, pairs of two sizes, and samples that cannot be read."""

import json
import logging
import multiprocessing
import signal
import subprocess
import sys
from collections import Counter
from itertools import chain, islice, pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from bdg.signals import SIGNALS
from callbacks.checkpoint import Checkpoint
from datamodules import cases, shards
from datamodules.degradations.noise import GaussianNoise
from datamodules.degradations.rain import Rain
from datamodules.pack import pack

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than a small machine has cores
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning's own
]

READERS = ("indexed", "stream")


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


@pytest.fixture
def four(clean, write, tmp_path):
    """Eleven clean images in four shards."""
    for i in range(7, 11):
        write(clean / f"photo{i}.png", i)
    pack(clean, tmp_path / "four", {"train": "rest"}, shard_size=3)
    return tmp_path / "four"


@pytest.fixture
def mixed(tmp_path, write):
    """Four pairs of haze and two of rain, and three clean images, in shards of their own."""
    for name, number in (("haze", 4), ("rain", 2)):
        for i in range(number):
            write(tmp_path / name / "gt" / f"{name}{i}.png", i)
            write(tmp_path / name / "lq" / f"{name}{i}.png", 10 + i)
        pack(tmp_path / name, tmp_path / "mixed" / name, {"train": "rest"})
    for i in range(3):
        write(tmp_path / "sharp" / f"clean{i}.png", 20 + i)
    pack(tmp_path / "sharp", tmp_path / "mixed" / "clean", {"train": "rest"}, shard_size=2)
    return tmp_path / "mixed" / "*"


# --- ranks, workers, restarts ---


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.sampled_from([1, 2, 3, 12]),
    parts=st.integers(1, 2),
    window=st.sampled_from([None, 1, 2]),
    quotas=st.sampled_from([None, {"noise": 2, "haze": 1}]),
    stop=st.integers(0, 3),
)
def test_images_are_the_same_whatever_ranks_parts_and_restarts(four, data, ranks, parts, window, quotas, stop):
    """Also with more ranks than samples."""
    chosen = {"batch_size": ranks * parts, "window": window, "quotas": quotas, "crop": 8}
    alone = list(islice(data(four, **chosen).stream(), 3))
    together = []
    for first, last, world, at_once in ((0, stop, ranks, parts), (stop, 3, 1, ranks)):
        loaders = [data(four, **chosen).stream(first, rank, world, at_once) for rank in range(world)]
        batches = zip(*(islice(loader, (last - first) * at_once) for loader in loaders), strict=True)
        together += [batch for of_ranks in batches for batch in of_ranks]
    for name in ("x_hq", "x_lq", "label", "index"):
        assert torch.equal(torch.cat([b[name] for b in alone]), torch.cat([b[name] for b in together]))
    assert list(chain(*(b["key"] for b in alone))) == list(chain(*(b["key"] for b in together)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_epoch_has_every_sample_once(four, data, reader, ranks, workers):
    loaders = [
        data(four, batch_size=ranks, reader=reader, num_workers=workers).stream(0, r, ranks) for r in range(ranks)
    ]
    wanted = 11 if ranks == 1 else 40
    keys = Counter(key for loader in loaders for batch in islice(loader, wanted) for key in batch["key"])
    assert len(keys) == 11
    assert max(keys.values()) - min(keys.values()) <= (0 if ranks == 1 else 3 if reader == "stream" else 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_stream_begun_at_a_step_is_the_rest_of_the_stream(four, data, reader, workers):
    for rank in range(2):
        whole = list(islice(data(four, reader=reader, num_workers=workers).stream(0, rank, 2), 9))
        later = list(islice(data(four, reader=reader, num_workers=workers).stream(4, rank, 2), 5))
        assert all(same(a, b) for a, b in zip(whole[4:], later, strict=True))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal")
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_to_the_process_group_ends_no_worker(four, data, signum):
    before = {child.pid for child in multiprocessing.active_children()}
    batches = iter(data(four, num_workers=1).stream())
    next(batches)
    (worker,) = (child for child in multiprocessing.active_children() if child.pid not in before)

    subprocess.run(["kill", f"-{signum.value}", str(worker.pid)], check=True)  # not its parent, which may end it
    assert len(list(islice(batches, 12))) == 12
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_batches_that_are_kept_are_not_written_over(four, data):
    kept = list(islice(data(four, num_workers=2).stream(), 14))
    anew = islice(data(four).stream(), 14)
    assert all(same(a, b) for a, b in zip(kept, anew, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_where_there_is_a_device_and_stay_the_same(four, data, workers, monkeypatch):
    pinned = list(islice(data(four, num_workers=workers).stream(), 9))
    assert all(batch["x_hq"].is_pinned() and batch["x_lq"].is_contiguous() for batch in pinned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert all(same(a, b) for a, b in zip(pinned, islice(data(four).stream(), 9), strict=True))


def test_parts_of_a_step_are_the_step(four, data):
    whole = [batch["key"] for batch in islice(data(four, batch_size=12).stream(3), 2)]
    parts = [batch["key"] for batch in islice(data(four, batch_size=12).stream(3, accumulated=3), 6)]
    assert [list(chain(*parts[:3])), list(chain(*parts[3:]))] == whole


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_validation_has_every_case_once(four, data, reader, ranks, workers):
    loaders = [
        data(four, reader=reader, num_workers=workers).measured(f"{four}/*.tar", rank, ranks) for rank in range(ranks)
    ]
    batches = [list(loader) for loader in loaders]
    assert [len(b) for b in batches] == [len(loader) for loader in loaders]
    seen = Counter(index for of_rank in batches for batch in of_rank for index in batch["index"].tolist())
    assert set(seen) == set(range(11 * 4))
    idle = reader == "stream" and ranks > 4  # of five ranks one has no shard, and measures what another does
    assert sum(seen.values()) == 11 * 4 + idle


def test_both_readers_validate_the_same_images(four, data):
    found = []
    for reader in READERS:
        loader = data(four, reader=reader, batch_size=1).val_dataloader()
        found.append({int(batch["index"]): (batch["key"], batch["x_lq"]) for batch in loader})
    one, other = found
    assert one.keys() == other.keys()
    assert all(one[i][0] == other[i][0] and torch.equal(one[i][1], other[i][1]) for i in one)


def test_more_ranks_than_samples_validate_each_once(paired, data):
    loaders = [data(paired).measured(f"{paired}/*.tar", rank, 5) for rank in range(5)]
    seen = [batch["index"].tolist() for loader in loaders for batch in loader]
    assert seen == [[0], [1], [2], [0], [0]]  # what is measured twice is counted once


def test_stream_over_fewer_shards_than_workers_is_refused(packed, data):
    message = r"there are 3 shards for 2 ranks with 2 workers: take fewer workers, or data\.reader=indexed"
    with pytest.raises(ValueError, match=message):
        data(packed, reader="stream", num_workers=2).stream(0, 0, 2)


def test_window_keeps_reading_within_some_shards(four, data):
    batches = islice(data(four, batch_size=3, window=1).stream(), 40)
    places = {s.key: s.shard for s in shards.index(shards.expand(f"{four}/*.tar"))}
    seen = [places[key] for batch in batches for key in batch["key"]]
    assert sum(a != b for a, b in pairwise(seen)) <= len(seen) * 4 / 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reader": "forward"}, "data.reader=forward: choose one of indexed, stream"),
        ({"on_error": "ignore"}, "data.on_error=ignore: choose one of stop, skip"),
        ({"window": 0}, "data.window=0: give 1 or more"),
        ({"micro_batch": 0}, "data.micro_batch=0: give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(packed, data, change, message):
    with pytest.raises(ValueError, match=message):
        data(packed, **change)


# --- gradient accumulation ---


@pytest.mark.parametrize(
    ("micro_batch", "ranks", "parts"), [(None, 1, 1), (4, 1, 3), (4, 3, 1), (100, 2, 1), (2, 3, 2)]
)
def test_parts_of_a_step_follow_from_what_fits_on_a_device(packed, data, micro_batch, ranks, parts):
    assert data(packed, batch_size=12, micro_batch=micro_batch).accumulation(ranks) == parts


def test_part_that_does_not_divide_the_batch_is_refused_with_those_that_do(packed, data):
    message = r"data\.micro_batch=5: of data\.batch_size=12 each of 2 devices has 6, .*: take one of 1, 2, 3, 6"
    with pytest.raises(ValueError, match=message):
        data(packed, batch_size=12, micro_batch=5).accumulation(2)


class Recorder(L.LightningModule):
    """Remembers on which samples each step was trained, and how often it was validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: dict[int, list[int]] = {}
        self.validated = 0

    def training_step(self, batch, batch_idx):
        self.trained[self.global_step] = self.trained.get(self.global_step, []) + batch["index"].tolist()
        return self.weight * batch["x_lq"].mean()

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch["key"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("parts", "more_parts"), [(1, 2), (2, 1), (2, 4)])
@pytest.mark.parametrize("stopped_after", [4, 5])
def test_run_goes_on_with_another_number_of_parts(packed, data, tmp_path, parts, more_parts, stopped_after):
    def fit(accumulated: int, steps: int, ckpt: Path | None = None) -> Recorder:
        model = Recorder()
        trainer = L.Trainer(
            **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False},
            **{"enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path},
            max_steps=steps,
            accumulate_grad_batches=accumulated,
            val_check_interval=6 * accumulated,
            check_val_every_n_epoch=None,
            callbacks=Checkpoint(f"{tmp_path}", every_n_steps=2),
        )
        trainer.fit(model, datamodule=data(packed), ckpt_path=ckpt, weights_only=True)
        return model

    begun = fit(parts, stopped_after)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    resumed = fit(more_parts, 6, tmp_path / "last.ckpt")

    steps = {step: places for step, places in begun.trained.items() if step < kept} | resumed.trained
    assert steps == {step: list(range(4 * step, 4 * step + 4)) for step in range(6)}
    assert (begun.validated, resumed.validated) == (0, 28)


# --- quotas ---

NAMES = {"haze": None, "rain": Rain(), "noise": GaussianNoise()}


def test_quotas_deal_pairs_and_made_images_in_every_round(mixed, data):
    quotas = {"haze": 4, "rain": 1, "noise": 2}
    module = data(mixed, degradations=NAMES, quotas=quotas, batch_size=7, crop=16)
    batches = list(islice(module.stream(), 6))
    assert all(batch["label"].bincount().tolist() == [4, 1, 2] for batch in batches)
    seen = [(key, label) for batch in batches for key, label in zip(batch["key"], batch["label"].tolist(), strict=True)]
    of_label = [[key for key, label in seen if label == n] for n in range(3)]
    assert set(of_label[0]) == {f"haze{i}" for i in range(4)}
    assert [Counter(of_label[0][i : i + 4]).most_common(1)[0][1] for i in range(0, 24, 4)] == [1] * 6
    assert Counter(of_label[1][:5]) == Counter([f"rain{i}" for i in range(2)] + [f"clean{i}" for i in range(3)])
    assert Counter(of_label[2][:3]) == Counter(f"clean{i}" for i in range(3))


def test_quotas_of_clean_images_alone_are_those_of_what_is_made_of_them(packed, data):
    batches = islice(data(packed, quotas={"noise": 3, "haze": 1}).stream(), 5)
    assert all(batch["label"].bincount().tolist() == [3, 1] for batch in batches)


def test_image_looks_different_under_another_label_of_the_same_epoch(packed, data):
    batch = next(iter(data(packed, quotas={"noise": 7, "haze": 7}, batch_size=14).stream()))
    crops: dict[str, list[torch.Tensor]] = {}
    for key, x_hq in zip(batch["key"], batch["x_hq"], strict=True):
        crops.setdefault(key, []).append(x_hq)
    assert not any(torch.equal(one, other) for one, other in crops.values())


@pytest.mark.parametrize("ranks", [1, 2])
def test_quotas_do_not_depend_on_ranks_and_workers(mixed, data, ranks):
    settings = {"degradations": NAMES, "quotas": {"haze": 2, "noise": 1}, "window": 1}
    alone = [batch["key"] for batch in islice(data(mixed, **settings).stream(), 4)]
    loaders = [data(mixed, num_workers=1, **settings).stream(0, rank, ranks) for rank in range(ranks)]
    together = zip(*(islice(loader, 4) for loader in loaders), strict=True)
    assert [list(chain(*(batch["key"] for batch in parts))) for parts in together] == alone


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ({"snow": 1}, "data.quotas name snow, but the degradations are haze, rain, noise"),
        ({"haze": -1}, "data.quotas.haze=-1: give the samples of it in a round"),
        ({"haze": 0.5}, "data.quotas.haze=0.5: give the samples of it in a round"),
        ({"haze": 0}, "take no sample"),
    ],
)
def test_quotas_that_mean_nothing_are_refused(mixed, data, quotas, message):
    with pytest.raises(ValueError, match=message):
        data(mixed, degradations=NAMES, quotas=quotas).stream()


def test_quota_without_samples_is_refused(paired, packed, data):
    with pytest.raises(
        ValueError, match=r"data\.quotas\.haze=1: no pair has the degradation 'haze', and it cannot be made"
    ):
        data(packed, degradations=NAMES, quotas={"haze": 1}).stream()
    with pytest.raises(ValueError, match=r"data\.quotas\.noise=1: .* and there is no clean image"):
        data(paired, degradations=NAMES, quotas={"noise": 1}).stream()


def test_forward_reader_takes_quotas_of_what_is_made_only(four, paired, data):
    batches = islice(data(four, reader="stream", quotas={"noise": 3, "haze": 1}).stream(), 5)
    assert all(batch["label"].bincount().tolist() == [3, 1] for batch in batches)
    with pytest.raises(ValueError, match=r"data\.reader=stream takes pairs as they come: take data\.reader=indexed"):
        data(paired, reader="stream", quotas={"haze": 1}).stream()


# --- pairs of two sizes ---


@pytest.fixture
def pair(tar, tmp_path):
    """A pair with a degraded image of some size, as a shard; its JSON member may say the scale."""

    def make(height, width, small_height, small_width, **said):
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((height, width), (small_height, small_width))]
        members = {"json": json.dumps({"degradation": "haze", **said}).encode()}
        for name, image in zip(("hq", "lq"), images, strict=True):
            Image.fromarray(image).save(tmp_path / f"{name}.png")
            members[f"{name}.png"] = (tmp_path / f"{name}.png").read_bytes()
        tar(tmp_path / "pair.tar", {f"a.{name}": content for name, content in members.items()})
        return f"{tmp_path}/pair", images

    return make


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((24, 36, 6, 9), {}),
        ((24, 36, 6, 9), {"scale": 4}),
        ((26, 37, 6, 9), {"scale": 4}),
        ((24, 36, 24, 36), {"scale": 4}),
    ],
)
def test_smaller_degraded_image_is_brought_to_size_as_the_field_does(pair, data, reader, sizes, said):
    shard, (x_hq, x_lq) = pair(*sizes, **said)
    batch = next(iter(data(shard[:-5], reader=reader, val_crop=None, crop=8).val_dataloader()))
    wanted = Image.fromarray(x_lq).resize((x_hq.shape[1], x_hq.shape[0]), Image.Resampling.BICUBIC)
    assert np.array_equal(batch["x_hq"][0], x_hq)
    assert np.array_equal(batch["x_lq"][0], np.asarray(wanted))


@pytest.mark.parametrize(
    ("sizes", "said"), [((24, 36, 6, 8), {}), ((24, 36, 6, 8), {"scale": 4}), ((24, 36, 24, 35), {})]
)
def test_pair_of_sizes_that_do_not_fit_is_an_error_of_one_line(pair, data, sizes, said):
    shard, _ = pair(*sizes, **said)
    with pytest.raises(ValueError, match=r"the degraded image is 8x6|the degraded image is 35x24"):
        next(iter(data(shard[:-5], crop=8).stream()))


# --- samples that cannot be read ---


@pytest.fixture
def spoilt(four):
    """The eleven images, two of them cut off inside of their shards."""
    (four / "manifest.json").unlink()
    samples = list(shards.index(shards.expand(f"{four}/*.tar")))
    for sample in (samples[2], samples[6]):
        with open(sample.shard, "r+b") as file:
            file.seek(sample.hq.offset + sample.hq.size // 2)
            file.write(bytes(sample.hq.size - sample.hq.size // 2))
    return four, {samples[2].key, samples[6].key}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_image_that_cannot_be_read_stops_unless_told_otherwise(spoilt, data, num_workers):
    with pytest.raises(ValueError, match=r"sample 'photo\d+': the image is cut off or damaged[^\n]*$"):
        list(islice(data(spoilt[0], num_workers=num_workers).stream(), 6))


@pytest.mark.parametrize("reader", READERS)
def test_image_that_cannot_be_read_is_replaced_counted_and_told(spoilt, data, reader, caplog):
    folder, bad = spoilt
    module = data(folder, on_error="skip", reader=reader, batch_size=11)
    batches = list(islice(module.stream(), 3))
    assert all(len(batch["key"]) == 11 and not bad & set(batch["key"]) for batch in batches)
    assert {name.rpartition("'")[0].rpartition("'")[2] for name in module.skipped} == bad
    assert sum(module.skipped.values()) >= 6
    with caplog.at_level(logging.WARNING, "bdg"):
        module.teardown("fit")
    assert "2 samples could not be read and were skipped" in caplog.text
    assert module.skipped == {}


def test_replacement_does_not_depend_on_ranks_workers_and_restarts(spoilt, data):
    alone = [batch["key"] for batch in islice(data(spoilt[0], on_error="skip").stream(), 8)]
    loaders = [data(spoilt[0], on_error="skip", num_workers=2).stream(2, rank, 2) for rank in range(2)]
    together = zip(*(islice(loader, 6) for loader in loaders), strict=True)
    assert [list(chain(*(batch["key"] for batch in parts))) for parts in together] == alone[2:]


@pytest.mark.parametrize("workers", [0, 3])
def test_validation_leaves_out_what_cannot_be_read(spoilt, data, workers):
    folder, bad = spoilt
    module = data(folder, on_error="skip", num_workers=workers)
    seen = [key for batch in module.val_dataloader() for key in batch["key"]]
    assert Counter(seen) == {f"photo{i}": 4 for i in range(11) if f"photo{i}" not in bad}
    assert sum(module.skipped.values()) == 8


def test_set_without_any_readable_image_ends_with_an_error(tar, tmp_path, data):
    tar(tmp_path / "x.tar", {f"{i}.png": b"\x89PNG is cut off" for i in range(3)})
    with pytest.raises(ValueError, match=rf"and {cases.ATTEMPTS} samples in its place cannot be read: .*bdg doctor"):
        next(iter(data(tmp_path, on_error="skip").stream()))


# --- several processes ---

TRAINING = """
import json, sys
import lightning as L, torch
from datamodules.degradations.noise import GaussianNoise
from datamodules.restoration import RestorationData

folder, reader, out, ranks, steps, ckpt = sys.argv[1:]

class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        self.register_buffer("buffer", torch.zeros(1))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch["key"])
        return self.weight(batch["x_lq"].mean()[None]).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = RestorationData({"noise": GaussianNoise()}, f"{folder}/*.tar", f"{folder}/*.tar", crop=16, flip=True, batch_size=4,
                       num_workers=2, val_crop=16, val_severities=[1], seed=0, reader=reader)
model = Recorder()
trainer = L.Trainer(accelerator="cpu", devices=int(ranks), strategy="ddp", max_steps=int(steps), val_check_interval=int(steps),
                    check_val_every_n_epoch=None, logger=False, enable_progress_bar=False, enable_model_summary=False,
                    enable_checkpointing=False, use_distributed_sampler=False, num_sanity_val_steps=0)
trainer.fit(model, datamodule=data, ckpt_path=ckpt or None, weights_only=True)
trainer.save_checkpoint(f"{out}.ckpt")
with open(f"{out}-{trainer.global_rank}.json", "w") as file:
    json.dump([model.trained, model.validated], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_two_ranks_with_two_workers_train_resume_and_validate(four, tmp_path, reader):
    (tmp_path / "training.py").write_text(TRAINING)

    def run(name: str, ranks: int, steps: int, ckpt: str = "") -> tuple[list[list[str]], list[int]]:
        """The keys of each step, over all ranks, and the cases that were validated."""
        words = [tmp_path / "training.py", four, reader, tmp_path / name, ranks, steps, ckpt]
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        of_ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
        trained, validated = zip(*of_ranks, strict=True)
        return [list(chain(*parts)) for parts in zip(*trained, strict=True)], sorted(chain(*validated))

    whole, begun = run("whole", 2, 9), run("begun", 2, 4)
    resumed = run("resumed", 2, 9, f"{tmp_path}/begun.ckpt")
    assert begun[0] + resumed[0] == whole[0]
    assert whole[1] == resumed[1] == list(range(11))
    if reader == "indexed":
        assert run("alone", 1, 9, f"{tmp_path}/begun.ckpt") == resumed
