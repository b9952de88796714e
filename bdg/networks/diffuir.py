"""DiffUIR's weights in our UNet: checkpoints read as data, its names for the tensors, and a network built from them."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdg.files import check_stored
from bdg.networks.blocks import HEAD_WIDTH
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
SIZES: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (1, 1, 1, 1)): "DiffUIR-T",
    (32, (1, 2, 2, 4)): "DiffUIR-S",
    (64, (1, 2, 2, 4)): "DiffUIR-B",
    (64, (1, 2, 4, 8)): "DiffUIR-L",
}
ENTRIES = ("ema", "model", "state_dict")
"""Of a checkpoint, the averaged weights first; DiffUIR's own test takes these."""
COPIES = ("ema_model.", "online_model.")
"""In the entry `ema`: averaged, and as trained."""
MAX_BYTES = 4 * 2**30
"""Of a checkpoint; DiffUIR-L with its optimizer has 0.6 GB."""
DAMAGED = (
    *(AssertionError, AttributeError, EOFError, IndexError, KeyError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What reading makes of a file that is cut off, changed, or something else."""
WAY_OUT = "give a checkpoint of DiffUIR's trainer (model-N.pt), or the state_dict in it"


@dataclass(frozen=True)
class Published:
    """Tensors of one network in a checkpoint, by DiffUIR's names. entry: where they were, such as "ema.ema_model".

    ignored: names of the other tensors and values. step: of the training, if the file says so.
    """

    tensors: Mapping[str, Tensor]
    entry: str
    ignored: tuple[str, ...]
    step: int | None


def our_name(name: str) -> str:
    """The name in our UNet of what DiffUIR calls `name` (without PREFIX)."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def read_diffuir(path: Path) -> Published:
    """What a checkpoint of DiffUIR holds, read as tensors and plain values: a pickle of anything else is refused, not run.

    Raises FileNotFoundError, and ValueError for what is no such checkpoint, is cut off, or claims more than it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: {WAY_OUT}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size / 2**30:.1f} GiB, more than {MAX_BYTES / 2**30:.0f}: {WAY_OUT}")
    try:
        check_stored(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its own text says how to run it
        raise ValueError(
            f"{path} holds more than tensors and plain values, which could run code and is not read: {WAY_OUT}"
        ) from None
    except DAMAGED as error:
        raise ValueError(
            f"{path} is not what torch.save writes, or cut off ({type(error).__name__}: {_line(error)}): {WAY_OUT}"
        ) from None
    try:
        return _published(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _published(found: Any) -> Published:
    if not isinstance(found, Mapping):
        raise ValueError(f"holds a {type(found).__name__} and no named tensors: {WAY_OUT}")
    entries = {name: found[name] for name in ENTRIES if isinstance(found.get(name), Mapping)} or {"": found}
    tensors = {f"{entry}.{name}".lstrip("."): w for entry, group in entries.items() for name, w in group.items()}
    homes = list(dict.fromkeys(name.partition(PREFIX)[0] for name in tensors if PREFIX in name))
    if not homes:
        shown = next((name for name, w in tensors.items() if isinstance(w, Tensor)), None)
        raise ValueError(f"no tensor is named {PREFIX}*, but e.g. {shown!r}: {WAY_OUT}")
    if any("model.unet1." in name for name in tensors):
        raise ValueError(f"has a second network, model.unet1.*, as RDDM's have and DiffUIR's have not: {WAY_OUT}")
    home = next((home for copy in COPIES for home in homes if home.endswith(copy)), homes[0])
    taken = {name.removeprefix(home + PREFIX): w for name, w in tensors.items() if name.startswith(home + PREFIX)}
    others = [str(name) for name in found if name not in entries] if "" not in entries else []
    ignored = [name for name in tensors if not name.startswith(home + PREFIX)]
    step = found.get("step")
    return Published(
        taken, home.rstrip(".") or "the file", (*others, *ignored), step if isinstance(step, int) else None
    )


def from_diffuir(state_dict: Mapping[str, Tensor]) -> UNet:
    """A network with both heads that predicts DiffUIR's residual, and zero noise.

    state_dict: the tensors of a DiffUIR checkpoint, `checkpoint["ema"]` or `checkpoint["model"]`; all but the UNet's are
    ignored. It was trained with `time: alpha`.
    """
    return built(_published(state_dict).tensors)


def built(theirs: Mapping[str, Tensor]) -> UNet:
    """The network of these tensors, as `Published` has them; dim, mults and heads are read off the shapes.

    Raises ValueError where they are not those of one DiffUIR network.
    """
    for name, w in theirs.items():
        if not isinstance(w, Tensor) or w.layout != torch.strided or w.untyped_storage().nbytes() < w.nbytes:
            raise ValueError(f"{PREFIX}{name} is no tensor, or claims more values than the file holds: {WAY_OUT}")
    ours = {our_name(name): w.float() for name, w in theirs.items()}
    size = size_of(theirs)
    with torch.device("meta"):  # shapes are compared before there is memory for them
        network = UNet(**size)
    channels = network.in_channels
    for name in ("final_conv.weight", "final_conv.bias"):
        w = ours[name]
        ours[name] = torch.cat((w, w.new_zeros(max(channels - len(w), 0), *w.shape[1:])))
    shapes = {name: w.shape for name, w in network.state_dict().items()}
    strange = [*(shapes.keys() ^ ours.keys())]
    strange += [name for name in shapes.keys() & ours.keys() if ours[name].numel() != shapes[name].numel()]
    if strange:
        raise ValueError(
            f"its {len(ours)} tensors are not those of a DiffUIR network of {size_text(**size)}: {len(strange)} are missing, "
            f"surplus or of another shape, such as {min(strange)}: {WAY_OUT}"
        )
    network.load_state_dict({name: w.reshape(shapes[name]).clone() for name, w in ours.items()}, assign=True)
    return network


def size_of(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `UNet`, read off the shapes. Raises ValueError where these are no DiffUIR network's."""
    dims = {"init_conv.weight": 4, "final_conv.weight": 4, "final_conv.bias": 1, "downs.0.2.fn.fn.to_qkv.weight": 4}
    for name, number in dims.items():
        if name not in theirs or theirs[name].ndim != number:
            raise ValueError(f"{PREFIX}{name} is missing, or has not {number} axes: no DiffUIR network: {WAY_OUT}")
    dim, channels, *_ = theirs["init_conv.weight"].shape
    widths = [len(w) for name, w in sorted(theirs.items()) if re.fullmatch(r"downs\.\d\.3\.weight", name)]
    heads = len(theirs["downs.0.2.fn.fn.to_qkv.weight"]) // (3 * HEAD_WIDTH)
    mults = [width // max(dim, 1) for width in widths]
    return {"dim": dim, "mults": mults, "in_channels": channels, "out_channels": channels, "heads": heads}


def size_text(dim: int, mults: Sequence[int], **others: int) -> str:
    """ "DiffUIR-T (dim 32, mults 1,1,1,1)", or without the name where it is none of the published sizes."""
    name = SIZES.get((dim, tuple(mults)))
    size = f"dim {dim}, mults {','.join(map(str, mults))}"
    return f"{name} ({size})" if name else size
