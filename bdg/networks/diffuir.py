"""DiffUIR's weights in our UNet: its names for the tensors, and a network built from them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from bdg.networks.unet import UNet

PREFIX = "model.unet0."
# (DiffUIR's name, ours) as regular expressions, to be applied in this order
NAMES = (
    (r"\b(downs|ups)\.(\d)\.0\.", r"\1.\2.res1."),
    (r"\b(downs|ups)\.(\d)\.1\.", r"\1.\2.res2."),
    (r"\b(downs|ups)\.(\d)\.2\.", r"\1.\2.attention."),
    (r"\b(downs|ups)\.(\d)\.3\.(1\.)?", r"\1.\2.resample."),
    (r"\bmid_block([12])\.", r"mid.res\1."),
    (r"\bmid_attn\.", "mid.attention."),
    (r"\bfinal_res_block\.", "final_res."),
    (r"\bmlp\.1\.", "film."),
    (r"\bblock([12])\.proj\.", r"conv\1."),
    (r"\bblock([12])\.norm\.", r"norm\1."),
    (r"\bres_conv\.", "shortcut."),
    (r"\bfn\.fn\.to_qkv\.", "qkv."),
    (r"\bfn\.fn\.to_out\.1\.g$", "out_norm.weight"),
    (r"\bfn\.fn\.to_out\.(0\.)?", "out."),
    (r"\bfn\.norm\.g$", "norm.weight"),
)


def our_name(name: str) -> str:
    """The name in our UNet of what DiffUIR calls `name` (without PREFIX)."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def from_diffuir(state_dict: Mapping[str, Tensor]) -> UNet:
    """A network with both heads that predicts DiffUIR's residual, and zero noise.

    state_dict: the tensors of a DiffUIR checkpoint, `checkpoint["ema"]` or `checkpoint["model"]`; all but the UNet's are
    ignored. dim and mults are read off the shapes. It was trained with `time: alpha`.
    """
    theirs = {name.partition(PREFIX)[2]: w for name, w in state_dict.items() if PREFIX in name}
    if not theirs:
        raise ValueError(
            f"no tensor is named {PREFIX}*, but e.g. {next(iter(state_dict), None)!r}: "
            "give a DiffUIR checkpoint's entry 'ema' or 'model'"
        )
    dim, channels = theirs["init_conv.weight"].shape[:2]
    widths = [len(w) for name, w in theirs.items() if re.fullmatch(r"downs\.\d\.3\.weight", name)]
    network = UNet(dim, [width // dim for width in widths], channels, channels)
    ours = {our_name(name): w for name, w in theirs.items()}
    for name in ("final_conv.weight", "final_conv.bias"):
        w = ours[name]
        ours[name] = torch.cat((w, w.new_zeros(channels - len(w), *w.shape[1:])))
    shapes = {name: w.shape for name, w in network.state_dict().items()}
    network.load_state_dict({name: w.reshape(shapes.get(name, w.shape)) for name, w in ours.items()})
    return network
