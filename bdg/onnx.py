"""A denoiser as ONNX for any height and width, and its process as JSON; knows no weights file and no run.

What is written is what `onnx_restore.py`, copied beside it, needs: it pads, walks and clamps, the graph is the network alone.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdg import samplers
from bdg.denoiser import Denoiser

DENOISER, SCHEDULE, SAMPLER = "denoiser.onnx", "schedule.json", "restore.py"
SAMPLERS = ("ddim", "diffuir")
"""Those that `onnx_restore.py` has: they draw no noise on their way."""
TOLERANCE = 1e-3
"""Pixels in [-1, 1] that differ by more from torch's are not the same network's."""
LARGEST = 2**15
"""Height and width in units of pad_to, which the exporter wants to be bounded."""


class Core(nn.Module):
    """The network at sizes that need no padding: (x_t, x_lq, time) -> [residual | noise]."""

    def __init__(self, network: nn.Module, condition: str) -> None:
        super().__init__()
        self.network = network
        self.condition = condition

    def forward(
        self, x_t: Float[Tensor, "b c h w"], x_lq: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]
    ) -> Float[Tensor, "b out h w"]:
        given = x_lq if self.condition == "x_lq" else torch.zeros_like(x_lq)
        return self.network(x_t, given, time, features=())[0]


def need_onnx() -> None:
    """Raises ValueError where the packages are missing."""
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise ValueError(f"onnx=true needs {', '.join(missing)}, not installed here: pip install 'bdg[onnx]'")


def export_onnx(denoise: Denoiser, folder: Path, settings: Mapping[str, Any]) -> float:
    """Writes the network, its schedule and the sampler in numpy into `folder`. denoise: on the CPU, in float32.

    settings: "sampler" (of SAMPLERS), "sample_steps". Returns by how much a restored image differs from torch's at most.

    Raises ValueError for a sampler that numpy does not have, or if the difference is larger than TOLERANCE.
    """
    facts = schedule(denoise, settings)
    folder.mkdir(parents=True)
    (folder / SCHEDULE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("onnx_restore.py"), folder / SAMPLER)
    write_graph(denoise, folder / DENOISER, facts["pad_to"])
    found = difference(denoise, folder, settings)
    if not found <= TOLERANCE:
        raise ValueError(
            f"onnxruntime restores other pixels than torch, by {found:.2g} where {TOLERANCE} is allowed: leave out onnx=true"
        )
    return found


def schedule(denoise: Denoiser, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a sampler needs beside the network. The curves have a point more than there are times, for time -1."""
    name, steps, diffusion = settings["sampler"], settings["sample_steps"], denoise.diffusion
    if name not in SAMPLERS or settings.get("eta"):
        raise ValueError(
            f"onnx=true has no sampler {name} with eta {settings.get('eta', 'of its own')}: give sampler=ddim or "
            "sampler=diffuir"
        )
    t = torch.arange(-1, diffusion.num_steps)
    curves = {key: c.flatten().tolist() for key, c in diffusion.at(t, torch.float64)._asdict().items()}
    jumps = samplers.times(diffusion.num_steps, steps)
    return {
        "sampler": name,
        "times": [t for t, _ in jumps] + [-1],
        "clamp": bool(denoise.clamp),
        "estimate": diffusion.estimate_from,
        "start_noise": 0.1 if name == "diffuir" else curves["beta_bar"][-1],
        "pad_to": getattr(denoise.network, "pad_to", 1),
        "time": diffusion.time(t[1:]).tolist(),
        **curves,
    }


def write_graph(denoise: Denoiser, path: Path, pad_to: int) -> None:
    """Dynamic in batch, height and width; these in multiples of pad_to."""
    core = Core(denoise.network, denoise.condition).eval()
    b, h, w = (torch.export.Dim(name, min=1, max=LARGEST) for name in ("b", "h", "w"))
    image = {0: b, 2: pad_to * h, 3: pad_to * w}
    x = torch.zeros(2, 3, 2 * pad_to, 3 * pad_to)
    with hushed():
        program = torch.onnx.export(
            core,
            (x, x.clone(), torch.ones(2)),
            input_names=["x_t", "x_lq", "time"],
            output_names=["prediction"],
            dynamic_shapes=(image, image, {0: b}),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def difference(denoise: Denoiser, folder: Path, settings: Mapping[str, Any]) -> float:
    """Of an image restored by both, of a size that needs padding."""
    from bdg.onnx_restore import restore

    x_lq, noise = (torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(i)) for i in range(2))
    x_lq = x_lq.clamp(-1, 1)
    with torch.inference_mode():
        walk = getattr(samplers, settings["sampler"])
        x_hq = walk(denoise, denoise.diffusion, x_lq, noise, sample_steps=settings["sample_steps"]).clamp(-1, 1)
    return float((torch.from_numpy(restore(x_lq.numpy(), noise.numpy(), folder)) - x_hq).abs().max())


@contextmanager
def hushed() -> Iterator[None]:
    """Silences what the exporter says of itself and nobody can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name: ")  # two inputs have the same size
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
