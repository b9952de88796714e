"""The two-order chain of Real-ESRGAN, stopped after any of its eight operations: how far it came is the order of degradation.

    1 blur   2 resize   3 noise   4 JPEG   5 blur   6 resize   7 noise   8 resize to the end and sinc, and JPEG, in either order

Source: Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833) and its published options train_realesrgan_x4plus.yml, whose names and
values are those below. As there, nothing is smoothed before it is made smaller (OpenCV's bilinear and bicubic look at the
nearest pixels only), a blur or a resize may come out as none, and the result has 8 bits. Unlike there the chain begins with
x_hq as it is, not sharpened, and JPEG is libjpeg's, with whole numbers as quality. **open**: how a state before the eighth
comes to the size of the end; here by a resize as the eighth draws it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from datamodules.degradations.base import (
    Picture,
    Recipe,
    check_ranges,
    draw_seed,
    from_bytes,
    luma,
    to_bytes,
    uniform,
    unit_noise,
)
from datamodules.degradations.jpeg import compressed
from datamodules.degradations.kernels import convolved, gaussian, sinc

NAME = "real_esrgan"
NUM_OPERATIONS = 8
KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SMALLEST_KERNEL, LARGEST_KERNEL = 7, 21
RESIZES = ("up", "down", "keep")
METHODS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

Step = Recipe
"""One step of a recipe: its "op" and what was drawn for it."""


@dataclass(frozen=True)
class Order:
    """One round of blur, resize, noise and JPEG: draws their steps. `RealEsrgan` explains the options."""

    suffix: str  # what the names of its options end with there
    blur_kernel_size: int
    kernel_list: Sequence[str]
    kernel_prob: Sequence[float]
    sinc_prob: float
    blur_sigma: Sequence[float]
    betag_range: Sequence[float]
    betap_range: Sequence[float]
    resize_prob: Sequence[float]
    resize_range: Sequence[float]
    gaussian_noise_prob: float
    noise_range: Sequence[float]
    poisson_scale_range: Sequence[float]
    gray_noise_prob: float
    jpeg_range: Sequence[int]

    def __post_init__(self) -> None:
        ranges = {
            "blur_sigma": (0.01, 100),
            "noise_range": (0, 255),
            "poisson_scale_range": (0, 100),
            "jpeg_range": (1, 100),
        }
        for option, bounds in ranges.items():
            check_ranges(NAME, *bounds, **{option + self.suffix: getattr(self, option)})
        if self.blur_kernel_size < SMALLEST_KERNEL or self.blur_kernel_size % 2 == 0:
            self._refuse("blur_kernel_size", f"give an odd number from {SMALLEST_KERNEL} on")
        if not self.kernel_list or set(self.kernel_list) - set(KERNELS):
            self._refuse("kernel_list", f"give some of {', '.join(KERNELS)}")
        for option in ("betag_range", "betap_range", "resize_range"):
            low, high = getattr(self, option)
            if not 0 < low <= 1 <= high:
                self._refuse(option, "give one number below 1 and one above")
        for option, choices in (("kernel_prob", self.kernel_list), ("resize_prob", RESIZES)):
            values = getattr(self, option)
            if len(values) != len(choices) or min(values) < 0 or not np.isclose(sum(values), 1):
                self._refuse(option, f"give probabilities of {', '.join(choices)} that add up to 1")

    def _refuse(self, option: str, way_out: str) -> NoReturn:
        raise ValueError(f"{option}{self.suffix}={getattr(self, option)} of '{NAME}': {way_out}")

    def blur(self, rng: Generator) -> Step:
        size = draw_size(self.blur_kernel_size, rng)
        if rng.random() < self.sinc_prob:
            return {"op": "sinc", "size": size, "cutoff_rad": rng.uniform(np.pi / (3 if size < 13 else 5), np.pi)}
        shape, _, axes = pick(self.kernel_list, self.kernel_prob, rng).rpartition("_")
        low, high = self.betap_range if shape == "plateau" else self.betag_range
        sigma_x, sigma_y = (uniform(self.blur_sigma, rng) for _ in range(2))
        return {
            "op": "blur",
            "size": size,
            "shape": shape or "gaussian",
            "sigma_x": sigma_x,
            "sigma_y": sigma_x if axes == "iso" else sigma_y,
            "angle_rad": rng.uniform(-np.pi, np.pi),
            "beta": rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high),
        }

    def resize(self, end: float, rng: Generator) -> Step:
        """To `end` of the size of x_hq, or more, or less."""
        low, high = self.resize_range
        change = {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}
        return resize_to(end * change[pick(RESIZES, self.resize_prob, rng)], rng)

    def noise(self, rng: Generator) -> Step:
        rest = {"gray": bool(rng.random() < self.gray_noise_prob), "seed": draw_seed(rng)}
        if rng.random() < self.gaussian_noise_prob:
            return {"op": "gaussian", "sigma": uniform(self.noise_range, rng), **rest}
        return {"op": "poisson", "scale": uniform(self.poisson_scale_range, rng), **rest}

    def jpeg(self, rng: Generator) -> Step:
        low, high = self.jpeg_range
        return {"op": "jpeg", "quality": int(rng.integers(low, high, endpoint=True))}


@dataclass(frozen=True)
class RealEsrgan:
    """A callable (x_hq, rng) -> (x_lq, recipe) like `Degradation`, with an order in place of a severity.

    stop_after: the operation after which the chain ends, 1 to 8; None: drawn for each image.
    scale: how many times smaller the end is than x_hq; x_lq is enlarged again by Pillow's bicubic, as a pair of that scale is.

    The others are Real-ESRGAN's, those of the second order with a 2 behind: probabilities of kernels, and of up, down and
    keep; ranges of the kernels' sigma in pixels and of their shape's beta, of the factor of a resize, of Gaussian noise in
    grey levels of 255, of the strength of Poisson noise (1: as counted), of JPEG's quality.
    """

    stop_after: int | None = None
    scale: int = 4

    blur_kernel_size: int = LARGEST_KERNEL
    kernel_list: Sequence[str] = KERNELS
    kernel_prob: Sequence[float] = KERNEL_PROB
    sinc_prob: float = 0.1
    blur_sigma: Sequence[float] = (0.2, 3.0)
    betag_range: Sequence[float] = (0.5, 4.0)
    betap_range: Sequence[float] = (1.0, 2.0)
    resize_prob: Sequence[float] = (0.2, 0.7, 0.1)
    resize_range: Sequence[float] = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Sequence[float] = (1.0, 30.0)
    poisson_scale_range: Sequence[float] = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Sequence[int] = (30, 95)

    second_blur_prob: float = 0.8
    blur_kernel_size2: int = LARGEST_KERNEL
    kernel_list2: Sequence[str] = KERNELS
    kernel_prob2: Sequence[float] = KERNEL_PROB
    sinc_prob2: float = 0.1
    blur_sigma2: Sequence[float] = (0.2, 1.5)
    betag_range2: Sequence[float] = (0.5, 4.0)
    betap_range2: Sequence[float] = (1.0, 2.0)
    resize_prob2: Sequence[float] = (0.3, 0.4, 0.3)
    resize_range2: Sequence[float] = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Sequence[float] = (1.0, 25.0)
    poisson_scale_range2: Sequence[float] = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Sequence[int] = (30, 95)
    final_sinc_prob: float = 0.8

    name: ClassVar[str] = NAME
    orders: tuple[Order, Order] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.stop_after is not None and self.stop_after not in range(1, NUM_OPERATIONS + 1):
            raise ValueError(
                f"stop_after={self.stop_after} of '{NAME}': give 1 to {NUM_OPERATIONS}, or null to draw it"
            )
        if self.scale < 1:
            raise ValueError(f"scale={self.scale} of '{NAME}': give 1, or how many times smaller the end is to be")
        names = [each.name for each in fields(Order) if each.name != "suffix"]
        orders = (Order(suffix, **{n: getattr(self, n + suffix) for n in names}) for suffix in ("", "2"))
        object.__setattr__(self, "orders", tuple(orders))

    def __call__(self, x_hq: Picture, rng: Generator) -> tuple[Picture, Recipe]:
        # drawn in any case: with one rng the eight orders are then the states of one chain
        stop_after = int(rng.integers(1, NUM_OPERATIONS, endpoint=True))
        recipe = self.draw(self.stop_after or stop_after, rng)
        return self.replay(x_hq, recipe), recipe

    def draw(self, stop_after: int, rng: Generator) -> Recipe:
        """The steps of the operations up to `stop_after`, and the resize to the end where those have none."""
        (first, second), end = self.orders, 1 / self.scale
        operations = [
            [first.blur(rng)],
            [first.resize(1, rng)],
            [first.noise(rng)],
            [first.jpeg(rng)],
            [second.blur(rng)] if rng.random() < self.second_blur_prob else [],
            [second.resize(end, rng)],
            [second.noise(rng)],
        ]
        ending, jpeg = [resize_to(end, rng)], [second.jpeg(rng)]
        sharpened = [
            *ending,
            {"op": "sinc", "size": draw_size(LARGEST_KERNEL, rng), "cutoff_rad": rng.uniform(np.pi / 3, np.pi)},
        ]
        last = sharpened if rng.random() < self.final_sinc_prob else ending
        operations.append(jpeg + last if rng.random() < 0.5 else last + jpeg)
        steps = [step for operation in operations[:stop_after] for step in operation]
        steps += ending if stop_after < NUM_OPERATIONS else []
        return {"degradation": NAME, "stop_after": stop_after, "scale": self.scale, "steps": steps}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq, of 8 bits before it is enlarged to the size of x_hq."""
        x = x_hq
        for step in recipe["steps"]:
            x = STEPS[step["op"]](x, step, x_hq.shape)
        height, width = x_hq.shape[:2]
        small = Image.fromarray(to_bytes(x))
        return from_bytes(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))


def pick(choices: Sequence[str], probabilities: Sequence[float], rng: Generator) -> str:
    return choices[int(rng.choice(len(choices), p=np.divide(probabilities, sum(probabilities))))]


def draw_size(largest: int, rng: Generator) -> int:
    """Of a kernel: odd."""
    return 2 * int(rng.integers(SMALLEST_KERNEL // 2, largest // 2, endpoint=True)) + 1


def resize_to(factor: float, rng: Generator) -> Step:
    """To `factor` times the size of x_hq."""
    return {"op": "resize", "factor": factor, "method": list(METHODS)[int(rng.integers(len(METHODS)))]}


def resized(x: Picture, step: Step, shape: tuple[int, ...]) -> NDArray[Any]:
    height, width = (max(1, round(step["factor"] * extent)) for extent in shape[:2])
    return cv2.resize(x, (width, height), interpolation=METHODS[step["method"]])


def with_gaussian_noise(x: Picture, step: Step) -> Picture:
    shape = (*x.shape[:2], 1 if step["gray"] else 3)
    return np.clip(x + np.float32(step["sigma"] / 255) * unit_noise(shape, step["seed"]), 0, 1)


def with_poisson_noise(x: Picture, step: Step) -> Picture:
    """Photons as many per white as x has levels (of 8 bits), up to a power of two; their noise is scaled and added."""
    levels = to_bytes(luma(x)[..., None] if step["gray"] else x)
    num_levels = np.count_nonzero(np.bincount(levels.reshape(-1), minlength=256))
    photons, clean = np.float32(2 ** np.ceil(np.log2(num_levels))), from_bytes(levels)
    counts = np.random.default_rng(step["seed"]).poisson(photons * clean)
    return np.clip(x + np.float32(step["scale"]) * (counts.astype(np.float32) / photons - clean), 0, 1)


STEPS: dict[str, Callable[[Picture, Step, tuple[int, ...]], Picture]] = {
    "blur": lambda x, step, shape: convolved(x, gaussian(**_arguments(step))),
    "sinc": lambda x, step, shape: convolved(x, sinc(**_arguments(step))),
    "resize": resized,
    "gaussian": lambda x, step, shape: with_gaussian_noise(x, step),
    "poisson": lambda x, step, shape: with_poisson_noise(x, step),
    "jpeg": lambda x, step, shape: compressed(x, step["quality"]),
}
"""What a step does with the image so far; `shape` is that of x_hq."""


def _arguments(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name != "op"}
