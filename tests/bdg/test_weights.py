"""Weights come back as they were saved, and a file that is something else says so."""

import pytest
import safetensors.torch
import torch

from bdg.weights import load_weights, save_weights

TENSORS = {"network.a": torch.arange(6.0).reshape(2, 3), "network.b": torch.tensor(3)}
METADATA = {"stage": "restoration", "network": {"_target_": "bdg.networks.unet.UNet", "mults": [1, 2]}}


def test_tensors_and_metadata_come_back(tmp_path):
    save_weights(tmp_path / "new" / "w.safetensors", TENSORS, METADATA)
    tensors, metadata = load_weights(tmp_path / "new" / "w.safetensors")
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_any_memory_layout_can_be_saved(tmp_path):
    kernel = torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    save_weights(tmp_path / "w", {"k": kernel, "transposed": TENSORS["network.a"].T}, {})
    tensors, _ = load_weights(tmp_path / "w")
    assert torch.equal(tensors["k"], kernel)
    assert torch.equal(tensors["transposed"], TENSORS["network.a"].T)


def test_the_same_values_give_the_same_bytes(tmp_path):
    save_weights(tmp_path / "a", TENSORS, {"x": 1, "y": 2})
    save_weights(tmp_path / "b", dict(reversed(TENSORS.items())), {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, TENSORS, METADATA)
    before = path.read_bytes()

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, TENSORS, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_says_what_to_type(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no weights there: give a file with weights=PATH.*bdg pipeline"):
        load_weights(tmp_path / "gone")


def test_files_of_another_kind_are_named(tmp_path):
    torch.save(TENSORS, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt: not a safetensors file.*ema\.safetensors"):
        load_weights(tmp_path / "last.ckpt")
    safetensors.torch.save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: holds tensors but not BDG's metadata"):
        load_weights(tmp_path / "other.safetensors")


def test_a_file_cut_in_half_is_refused(tmp_path):
    save_weights(tmp_path / "w", TENSORS, METADATA)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut off"):
        load_weights(tmp_path / "w")
