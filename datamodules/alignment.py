"""How far one image of a pair is shifted against the other, to a fraction of a pixel, whatever degrades it."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

FINE, COARSE = 1.0, 8.0  # pixels; structure between these two sizes is compared
NOISE = 2.0  # grey levels; contrast below it does not count
STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
REACH = 0.25  # of the shorter side; a larger shift is none

Gray = NDArray[np.float32]


class Shift(NamedTuple):
    """Pixels by which the second image shows everything further right and further down.

    explained: the share of the variance that the images do not have in common where they are, but do after the shift: near
    0 if the shift is not to be believed, near 1 if nothing else tells the images apart.
    """

    right: float
    down: float
    explained: float

    @property
    def distance(self) -> float:
        return float(np.hypot(self.right, self.down))

    def __str__(self) -> str:
        return (
            f"{self.right:+.2f} px right, {self.down:+.2f} down, which explains {self.explained:.0%} of the difference"
        )


def shift(hq: Gray, lq: Gray) -> Shift:
    """The shift of `lq` against `hq`, two images of one size in grey levels 0 to 255, at least 32 pixels wide and high.

    The error is some hundredths of a pixel, also in haze, low light, rain and noise; under the heaviest, in small images, up
    to 0.3. There `explained` may fall to 0.1 for a shift of 1.5 pixels. A blur kernel off its centre is a shift, too.
    """
    a, b = _structure(hq), _structure(lq)
    window = cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(a, b, window)
    start = max([(0.0, 0.0), (right, down)], key=lambda by: _correlation(a, b, by))
    fine = _refined(a, b, start)
    here = _correlation(a, b, (0, 0))
    there = _correlation(a, b, fine)
    if there < here + 1e-6:  # no better, but for rounding errors
        return Shift(0, 0, 0)
    return Shift(*fine, explained=1 - (1 - there**2) / (1 - here**2))


def _structure(gray: Gray) -> Gray:
    """Detail of medium size, of the same contrast everywhere, so that neither haze nor darkness nor noise counts for much."""
    coarse = cv2.GaussianBlur(gray, (0, 0), COARSE)
    detail = cv2.GaussianBlur(gray, (0, 0), FINE) - coarse
    contrast = cv2.sqrt(cv2.GaussianBlur(detail**2, (0, 0), COARSE))
    return np.divide(detail, contrast + NOISE, dtype=np.float32)


def _correlation(a: Gray, b: Gray, by: tuple[float, float]) -> float:
    """Correlation of `a` with `b` shifted back, where both are known; 0 for a shift out of reach or a flat image."""
    reach = max(map(abs, by))
    if not reach < REACH * min(a.shape):
        return 0.0
    edge = int(np.ceil(reach)) + 1
    back = cv2.warpAffine(b, _matrix(by), b.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    x, y = (image[edge:-edge, edge:-edge].ravel() for image in (a, back))
    spread = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1e-6 else 0.0


def _refined(a: Gray, b: Gray, start: tuple[float, float]) -> tuple[float, float]:
    """The shift of the largest correlation near `start` (Evangelidis and Psarakis 2008), or `start` if there is none."""
    try:
        everywhere = np.ones(a.shape, np.uint8)
        _, matrix = cv2.findTransformECC(a, b, _matrix(start), cv2.MOTION_TRANSLATION, STOP, everywhere, 1)
    except cv2.error:  # images without structure
        return start
    return float(matrix[0, 2]), float(matrix[1, 2])


def _matrix(by: tuple[float, float]) -> NDArray[np.float32]:
    return np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float32)
