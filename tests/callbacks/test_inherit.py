import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bdg.weights import save_weights
from callbacks.inherit import inherit, read_parent


def module(**widths: int) -> nn.Module:
    """One linear layer per name, of the width given."""
    return nn.ModuleDict({name: nn.Linear(width, width) for name, width in widths.items()})


def test_every_shared_tensor_comes_from_the_parent() -> None:
    parent, child = module(network=3), module(network=3)

    report = inherit(child, parent.state_dict(), "parent", fresh=(), dropped=())

    assert list(report.inherited) == ["network.bias", "network.weight"]
    for name, tensor in parent.state_dict().items():
        assert torch.equal(child.state_dict()[name], tensor)


def test_what_is_fresh_or_dropped_by_design_is_reported_with_its_norm() -> None:
    parent, child = module(network=3, classifier=2), module(network=3, discriminator=4)
    begun = child["discriminator"].weight.detach().clone()  # type: ignore[index]

    report = inherit(child, parent.state_dict(), "parent", fresh=("discriminator.",), dropped=("classifier.",))

    assert report.fresh["discriminator.weight"] == pytest.approx(begun.norm().item())
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(child["discriminator"].weight, begun)  # type: ignore[index]
    assert "2 inherited (norm" in str(report)


@pytest.mark.parametrize(
    ("parent", "fault"),
    [
        (module(other=3), "network.weight is not in the parent"),
        (module(network=3, surplus=1), "surplus.weight has no place here"),
        (module(network=4), r"network.weight is \(4, 4\) in the parent and \(3, 3\) here"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused_and_nothing_is_copied(parent: nn.Module, fault: str) -> None:
    child = module(network=3)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}

    with pytest.raises(ValueError, match=fault):
        inherit(child, parent.state_dict(), "parent", fresh=(), dropped=())

    assert all(torch.equal(child.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_missing_parent_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist: .* or start from scratch with inherit.from=none"):
        read_parent(str(tmp_path / "ema.safetensors"))


def test_a_parent_may_be_weights_or_a_checkpoint(tmp_path: Path) -> None:
    tensors = module(network=3).state_dict()
    save_weights(tmp_path / "w.safetensors", tensors, {"stage": "generation"})
    torch.save({"state_dict": tensors, "current_model_state": {}}, tmp_path / "last.ckpt")

    for name in ("w.safetensors", "last.ckpt"):
        assert json.dumps({k: v.tolist() for k, v in read_parent(str(tmp_path / name)).items()}, sort_keys=True) == (
            json.dumps({k: v.tolist() for k, v in tensors.items()}, sort_keys=True)
        )
