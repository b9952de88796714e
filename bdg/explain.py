"""What a picture's degradation looks like to MAS-GLCM and to the trained encoder: how probable each kind is, which known
pictures are nearest, and whether the picture is unlike all of them; knows no image files and restores nothing.

A picture is described by the mean of the descriptions of some squares of it. Coordinates of a description are its principal
components among known pictures, and how far it is from the space that these span. A linear head on the coordinates, its
temperature chosen on held-out photographs, gives probabilities; the known pictures themselves are the neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from bdg.glcm import MasGlcm
from bdg.networks.discriminator import MasEncoder
from bdg.probe import laplace_histogram, lbp, numbered, wavelet
from bdg.weights import load_weights, save_weights

CLEAN = "clean"
"""The name of the class of pictures that nothing was done to."""
UNUSUAL = 0.99
"""Of held-out pictures so many are no further from known ones than a picture that is not unusual."""
SMALLEST = 16
"""Edge in pixels to which smaller pictures are continued: MAS-GLCM pairs pixels that lie some apart."""
HALF = ("projection", "bank")
"""Tensors that are rounded to 16 bits, so that a file is small."""
BINS = 10
"""Of confidence, in the expected calibration error."""
TEMPERATURES = torch.logspace(-1.5, 1.5, 301, dtype=torch.float64)
FORMAT = "bdg-explain-1"
GLCM = "bdg.glcm.MasGlcm"


def chroma(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """`wavelet` of the colour differences R - G and B - G: texture has little there, noise as much as in the luma."""
    red, green, blue = images.int().split(1, dim=1)
    halved = (((difference + 255) // 2).to(torch.uint8) for difference in (red - green, blue - green))
    return torch.cat([wavelet(plane.expand(-1, 3, -1, -1)) for plane in halved], 1)


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "wavelet": wavelet,
    "chroma": chroma,
    "lbp": lbp,
    "laplace_histogram": laplace_histogram,
}
"""Descriptors that need no training, and see what MAS-GLCM does not."""


@dataclass(frozen=True)
class Explanation:
    """What is thought of one picture.

    probabilities: of each degradation and of CLEAN, the most probable first. nearest: known pictures, the nearest first: name
    of the photograph, its degradation, severity (None: clean, or unknown), distance. distance: to the k-th neighbour; limit:
    beyond it the picture is unusual, and the probabilities say little. seen_by: the features that all this rests on.
    """

    probabilities: dict[str, float]
    nearest: list[tuple[str, str, float | None, float]]
    distance: float
    unusual: bool
    limit: float = math.inf
    seen_by: str = "MAS-GLCM"


@dataclass(frozen=True)
class Known:
    """Described pictures: a description each (n d), and name of the photograph, degradation, severity (None: none).

    parts: descriptions of single squares, from which the head learns too (m d), and which picture each is of.
    """

    features: Float[Tensor, "n d"]
    names: Sequence[str]
    degradations: Sequence[str]
    severities: Sequence[float | None]
    parts: Float[Tensor, "m d"] | None = None
    whole: Int[Tensor, " m"] | None = None


@dataclass(frozen=True)
class Scores:
    """Measured on held-out photographs, every class with the same weight; shares from 0 to 1.

    recall: of each class. ece, ece_before: expected calibration error with the temperature and without, the temperature
    chosen on one half of the photographs and measured on the other. unusual: how many are called unusual, likewise.
    nearest: how many have the degradation of their nearest neighbour.
    """

    accuracy: float
    recall: Mapping[str, float]
    ece: float
    ece_before: float
    nearest: float
    unusual: float
    num_pictures: int
    num_photographs: int


class Description(nn.Module):
    """Picture -> the mean over squares of MAS-GLCM, of some statistics and, where there is an encoder, of F_mas.

    glcm: arguments of `bdg.glcm.MasGlcm`; encoder_glcm: those of the matrix that the encoder was trained on.
    statistics: names in STATISTICS. side, grid: squares of `side` pixels, at most `grid` in each direction, spread evenly;
    all of a smaller picture.
    """

    def __init__(
        self,
        glcm: Mapping[str, Any],
        encoder: MasEncoder | None = None,
        encoder_glcm: Mapping[str, Any] | None = None,
        statistics: Sequence[str] = (),
        side: int = 128,
        grid: int = 3,
    ) -> None:
        super().__init__()
        if side < SMALLEST or grid < 1:
            raise ValueError(f"side={side}, grid={grid}: give squares of at least {SMALLEST} pixels, and 1 or more")
        if (encoder is None) != (encoder_glcm is None):
            raise ValueError("an encoder and the MAS-GLCM that it was trained on belong together: give both")
        if unknown := [name for name in statistics if name not in STATISTICS]:
            raise ValueError(f"statistics={unknown}: choose among {', '.join(STATISTICS)}")
        self.glcm, self.encoder = glcm_of(glcm), encoder
        self.seen = None if encoder_glcm is None else glcm_of(encoder_glcm)
        self.statistics, self.side, self.grid = list(statistics), side, grid
        self.about = {
            "glcm": dict(glcm),
            "encoder_glcm": None if encoder_glcm is None else dict(encoder_glcm),
            "statistics": self.statistics,
            "side": side,
            "grid": grid,
        }

    @property
    def seen_by(self) -> str:
        """The names of the parts."""
        return ", ".join(["MAS-GLCM", *self.statistics, *(["F_mas"] if self.encoder else [])])

    @torch.inference_mode()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.squares(images).mean(0)

    @torch.inference_mode()
    def squares(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "s b d"]:
        """Of each square of the images."""
        return torch.stack([torch.cat(self._of_square(cut), 1) for cut in squares(images, self.side, self.grid)])

    def _of_square(self, square: UInt8[Tensor, "b 3 u v"]) -> list[Float[Tensor, "b _"]]:
        parts = [self.glcm(square).flatten(1), *(STATISTICS[name](square) for name in self.statistics)]
        if self.encoder is not None and self.seen is not None:
            parts.append(self.encoder(self.seen(square)))
        return parts

    @property
    def widths(self) -> list[int]:
        """Of the parts."""
        with torch.inference_mode():
            return [part.shape[1] for part in self._of_square(torch.zeros(1, 3, SMALLEST, SMALLEST, dtype=torch.uint8))]


@dataclass(frozen=True)
class Explainer:
    """Explanations by one set of known pictures.

    center, scale: of a description, scale one number per part. projection: rows are principal components, orthonormal.
    weight, bias: of the head on coordinates; temperature: what its logits are divided by. bank: coordinates of known
    pictures. k: which neighbour's distance counts; limit: the largest usual one.
    """

    description: Description
    classes: Sequence[str]
    center: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    projection: Float[Tensor, "w d"]
    weight: Float[Tensor, "c v"]
    bias: Float[Tensor, " c"]
    temperature: float
    bank: Float[Tensor, "n v"]
    known: Sequence[tuple[str, str, float | None]]
    k: int
    limit: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x_lq: UInt8[Tensor, "b 3 h w"]) -> list[Explanation]:
        z = self.coordinates(self.description(x_lq))
        probabilities = (self.logits(z) / self.temperature).softmax(1)
        near, rows = distances(z, self.bank).topk(self.k, largest=False)
        found = zip(probabilities.tolist(), near.tolist(), rows.tolist(), strict=True)
        return [self._explanation(*each) for each in found]

    def _explanation(self, probabilities: list[float], near: list[float], rows: list[int]) -> Explanation:
        order = sorted(zip(self.classes, probabilities, strict=True), key=lambda pair: -pair[1])
        nearest = [(*self.known[row], distance) for row, distance in zip(rows, near, strict=True)]
        far = near[-1]
        return Explanation(dict(order), nearest, far, far > self.limit, self.limit, self.description.seen_by)

    def coordinates(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        return coordinates(features, self.center, self.scale, self.projection)

    def logits(self, z: Float[Tensor, "n v"]) -> Float[Tensor, "n c"]:
        return z @ self.weight.T + self.bias

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads: tensors, with the rest as JSON metadata."""
        part = self.description
        tensors = {name: getattr(self, name) for name in ("center", "scale", "weight", "bias")}
        tensors |= {name: getattr(self, name).half() for name in HALF}
        if part.encoder is not None:
            tensors |= {f"encoder.{name}": value for name, value in part.encoder.state_dict().items()}
        known = [list(each) for each in self.known]
        own = {name: getattr(self, name) for name in ("temperature", "k", "limit")} | {"classes": list(self.classes)}
        save_weights(path, tensors, {**self.about, **own, **part.about, "known": known, "format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> "Explainer":
        """The explainer in a file that `bdg calibrate` wrote.

        Raises FileNotFoundError, and ValueError for a file that is damaged or of another kind.
        """
        tensors, about = load_weights(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: holds no explainer of this version: make one with bdg calibrate WEIGHTS")
        try:
            encoder = encoder_of(tensors) if about["encoder_glcm"] else None
            shape = {name: about[name] for name in ("glcm", "encoder_glcm", "statistics", "side", "grid")}
            description = Description(encoder=encoder, **shape)
            own = {name: tensors[name].float() for name in ("center", "scale", "projection", "weight", "bias", "bank")}
            known = [
                (str(name), str(degradation), None if severity is None else float(severity))
                for name, degradation, severity in about["known"]
            ]
            made = cls(
                description,
                [str(name) for name in about["classes"]],
                temperature=float(about["temperature"]),
                known=known,
                k=int(about["k"]),
                limit=float(about["limit"]),
                about=about,
                **own,
            )
            made.check()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: its parts do not fit together ({error}): run bdg calibrate again") from None
        return made

    def check(self) -> None:
        """Raises ValueError where shapes do not fit."""
        d, (w, v) = sum(self.description.widths), (self.projection.shape[0], self.weight.shape[1])
        given = [tuple(x.shape) for x in (self.center, self.scale, self.projection, self.bias, self.bank)]
        wanted = [(d,), (d,), (w, d), (len(self.classes),), (len(self.known), w + 1)]
        if given != wanted or v != w + 1 or len(self.weight) != len(self.classes) or not 1 <= self.k <= len(self.known):
            raise ValueError(f"tensors of {given} where {wanted} are expected")


def squares(images: UInt8[Tensor, "b 3 h w"], side: int, grid: int) -> list[UInt8[Tensor, "b 3 u v"]]:
    """Squares of `side` pixels spread evenly over the images, at most `grid` in each direction; one where it covers all."""
    h, w = images.shape[-2:]
    if min(h, w) < SMALLEST:
        padding = (0, max(0, SMALLEST - w), 0, max(0, SMALLEST - h))
        images = F.pad(images.float(), padding, mode="replicate").to(torch.uint8)
    rows, columns = (_starts(length, side, grid) for length in images.shape[-2:])
    return [images[..., top : top + side, left : left + side] for top in rows for left in columns]


def _starts(length: int, side: int, grid: int) -> list[int]:
    count = min(grid, math.ceil(length / side))
    if count == 1:
        return [max(0, (length - side) // 2)]
    return [(length - side) * k // (count - 1) for k in range(count)]


def coordinates(
    features: Float[Tensor, "n d"],
    center: Float[Tensor, " d"],
    scale: Float[Tensor, " d"],
    projection: Float[Tensor, "w d"],
) -> Float[Tensor, "n w+1"]:
    """Principal components, then the distance from the space that they span: what is unlike all is far there."""
    x = (features - center) * scale
    z = x @ projection.T
    beside = (x.square().sum(1) - z.square().sum(1)).clamp(min=0).sqrt()
    return torch.cat([z, beside[:, None]], 1)


def distances(z: Float[Tensor, "n v"], bank: Float[Tensor, "m v"]) -> Float[Tensor, "n m"]:
    """Euclidean, pair by pair: a product of matrices would round a small distance away."""
    return torch.cdist(z, bank, compute_mode="donot_use_mm_for_euclid_dist")


def fit(
    description: Description,
    known: Known,
    held_out: Known,
    width: int = 64,
    decay: float = 3e-4,
    k: int = 5,
    about: Mapping[str, Any] | None = None,
) -> tuple[Explainer, Scores]:
    """The explainer of known pictures, and what held-out ones say of it. Nothing is drawn: equal pictures give equal bytes.

    width: principal components that are kept. decay: of the head's squared weights. k: as in `Explainer`. about: what the
    file should say besides. held_out must show other photographs than `known`.

    Raises ValueError where photographs are in both, classes are missing, or there are too few pictures.
    """
    classes = _classes(known, held_out, k)
    center, scale = _standard(known.features, description.widths)
    components = torch.linalg.svd((known.features - center) * scale, full_matrices=False).Vh[:width]
    projection = components.half().float()  # as the file keeps it, like the bank
    bank, z = (coordinates(each.features, center, scale, projection) for each in (known, held_out))
    bank = bank.half().float()
    label, truth = (torch.tensor([classes.index(d) for d in each.degradations]) for each in (known, held_out))
    learnt, taught = bank, label
    if known.parts is not None and known.whole is not None:
        learnt = torch.cat([bank, coordinates(known.parts, center, scale, projection)])
        taught = torch.cat([label, label[known.whole]])
    weight, bias = head(learnt, taught, len(classes), decay)
    logits, distance = z @ weight.T + bias, distances(z, bank)
    far = distance.topk(k, largest=False).values[:, -1]
    balance = balanced(truth)
    made = Explainer(
        description,
        classes,
        center,
        scale,
        projection,
        weight,
        bias,
        temperature_of(logits, truth, balance),
        bank,
        list(zip(known.names, known.degradations, known.severities, strict=True)),
        k,
        _limit(far),
        about or {},
    )
    nearest = label[distance.argmin(1)] == truth
    return made, _scores(logits, truth, far, nearest, held_out.names, classes)


def _classes(known: Known, held_out: Known, k: int) -> list[str]:
    if both := set(known.names) & set(held_out.names):
        raise ValueError(f"{len(both)} photographs are both known and held out, such as '{min(both)}': part them")
    classes = [CLEAN, *(name for name in dict.fromkeys(known.degradations) if name != CLEAN)]
    for what, each in (("known", known), ("held-out", held_out)):
        if missing := set(classes) ^ set(each.degradations):
            raise ValueError(f"among {what} pictures there is none, or no class, of {', '.join(sorted(missing))}")
    if len(set(held_out.names)) < 2 or not 1 <= k <= len(known.names):
        raise ValueError(
            f"{len(set(held_out.names))} held-out photographs, {len(known.names)} known pictures: "
            f"at least 2 photographs and k={k} pictures are needed"
        )
    return classes


def _standard(features: Float[Tensor, "n d"], widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean, and what gives every part of a description the total variance 1."""
    center = features.mean(0)
    spread = [part.square().sum(1).mean().sqrt().clamp(min=1e-9) for part in (features - center).split(list(widths), 1)]
    return center, torch.cat([(1 / s).expand(width) for s, width in zip(spread, widths, strict=True)])


def balanced(label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Weights that add up to 1, and for every class to the same."""
    count = label.bincount().double()
    return (1 / count / (count > 0).sum())[label]


def head(
    z: Float[Tensor, "n v"], label: Int[Tensor, " n"], num_classes: int, decay: float
) -> tuple[Float[Tensor, "c v"], Float[Tensor, " c"]]:
    """Multinomial logistic regression with balanced classes: argmin sum w CE(W x + b) + decay |W|^2, x = z / sqrt(std z).

    On z itself the components of little variance, which tell faint degradations, would hardly count; on z / std z they would
    count too much.
    """
    spread = z.double().std(0).clamp(min=1e-6).sqrt()
    x, share = z.double() / spread, balanced(label)
    weight = torch.zeros(num_classes, z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = share @ F.cross_entropy(x @ weight.T + bias, label, reduction="none") + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (weight.detach() / spread).float(), bias.detach().float()


def temperature_of(logits: Float[Tensor, "n c"], label: Int[Tensor, " n"], share: Float[Tensor, " n"]) -> float:
    """argmin_T sum share CE(logits / T), among TEMPERATURES (Guo et al. 2017)."""
    losses = [share @ F.cross_entropy(logits.double() / t, label, reduction="none") for t in TEMPERATURES]
    return float(TEMPERATURES[int(torch.stack(losses).argmin())])


def calibration_error(
    probabilities: Float[Tensor, "n c"], label: Int[Tensor, " n"], share: Float[Tensor, " n"]
) -> float:
    """sum over bins of |weighted right answers - weighted confidence|, of the most probable class, in BINS equal bins."""
    confidence, answer = probabilities.double().max(1)
    surplus = share * ((answer == label).double() - confidence)
    row = (confidence * BINS).long().clamp(max=BINS - 1)
    return float(torch.zeros(BINS, dtype=torch.float64).index_add_(0, row, surplus).abs().sum())


def _limit(far: Float[Tensor, " n"]) -> float:
    return float(far.double().quantile(UNUSUAL))


def _scores(
    logits: Float[Tensor, "n c"],
    truth: Int[Tensor, " n"],
    far: Float[Tensor, " n"],
    nearest: Tensor,
    names: Sequence[str],
    classes: Sequence[str],
) -> Scores:
    half = numbered(names) % 2 == 0
    share, right = balanced(truth), logits.argmax(1) == truth
    tempered, unusual = logits.clone(), torch.empty_like(nearest)
    for mine, others in ((half, ~half), (~half, half)):
        tempered[mine] /= temperature_of(logits[others], truth[others], balanced(truth[others]))
        unusual[mine] = far[mine] > _limit(far[others])
    return Scores(
        accuracy=float(share @ right.double()),
        recall={name: float(right[truth == c].double().mean()) for c, name in enumerate(classes)},
        ece=calibration_error(tempered.softmax(1), truth, share),
        ece_before=calibration_error(logits.softmax(1), truth, share),
        nearest=float(share @ nearest.double()),
        unusual=float(unusual.double().mean()),
        num_pictures=len(truth),
        num_photographs=len(set(names)),
    )


# --- parts that files name ---


def glcm_of(node: Mapping[str, Any]) -> MasGlcm:
    """The MAS-GLCM of arguments; a class that they name, as a config does, must be this one."""
    if (target := node.get("_target_", GLCM)) != GLCM:
        raise ValueError(f"its glcm is '{target}', but only {GLCM} can be explained by")
    return MasGlcm(**{name: value for name, value in node.items() if not name.startswith("_")})


def encoder_of(tensors: Mapping[str, Tensor], prefix: str = "encoder.") -> MasEncoder:
    """The encoder whose tensors begin with `prefix`; its size follows from them."""
    own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    convolutions = [own[name] for name in sorted(own) if name.endswith(".0.weight")]
    encoder = MasEncoder(convolutions[0].shape[1], convolutions[-1].shape[0])
    encoder.load_state_dict(own)
    return encoder.eval().requires_grad_(False)
