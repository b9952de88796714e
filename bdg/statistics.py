"""How certain a mean is, and whether two differ: intervals over photographs and over seeds, paired tests, Holm's correction.

What is drawn at random is a photograph, not an image: one photograph degraded in ten ways is measured ten times, and those ten
values say little more than one. So values of images become one per photograph (`per_photograph`), on which all else works.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

LEVEL = 0.95
DRAWS = 20_000
"""Of the bootstrap, where there are few photographs; it needs the far tails there."""
EXACT = 14
"""Up to so many photographs, all their signs are tried."""

Vector = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Interval:
    """A mean, and where the true one lies with the certainty that was asked for; None if one value alone cannot tell.

    n: the photographs, or seeds, that it was told by.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def sure(self) -> bool:
        """Whether it leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Difference:
    """Of pairs: its interval, and the probability of one as large if there were none."""

    interval: Interval
    p: float


def per_photograph(
    values: Sequence[float],
    photographs: Sequence[Hashable],
    parts: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
) -> Vector:
    """One value per photograph, in the order of first appearance; their mean is the mean over parts of the parts' means.

    parts: degradations, each of which counts the same however many images it has. y_u = T + U sum_i (v_i - m_p) / (n_p P)
    over the images i of the photograph u, where T is the mean, m_p and n_p are those of the part of i: if every photograph
    is in every part equally often, just the mean of its own values; else the linear term of the mean's change (its influence).
    groups: if parts are test sets, the degradation of each: the mean is then over groups of the means over their parts, and
    P becomes the number of groups times that of the parts in the group of i.

    Raises ValueError for no values, or lengths that differ.
    """
    if not len(values) == len(photographs) == len(parts) or not len(values):
        raise ValueError(
            f"{len(values)} values, {len(photographs)} photographs, {len(parts)} parts: one of each per image"
        )
    v = np.asarray(values, np.float64)
    u, num_units = _numbered(photographs)
    p, num_parts = _numbered(parts)
    n_p = np.bincount(p, minlength=num_parts)
    m_p = np.bincount(p, v, num_parts) / n_p
    g, num_groups = _numbered(groups if groups is not None else [0] * len(v))
    group_of_part = np.zeros(num_parts, np.intp)
    group_of_part[p] = g
    P = num_groups * np.bincount(group_of_part, minlength=num_groups)[group_of_part]
    influence = (v - m_p[p]) / (n_p[p] * P[p])
    return np.sum(m_p / P) + num_units * np.bincount(u, influence, num_units)


def over_photographs(y: Vector, level: float = LEVEL) -> Interval:
    """Percentile bootstrap of the mean, widened for small samples (Hesterberg 2015, section 4.1.2).

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and by normal instead of Student quantiles; its tails are
    therefore taken at Phi(-sqrt(n / (n - 1)) t). It still follows a skewed distribution, as Student's does not.
    """
    n = len(y)
    if n < 2:
        return Interval(float(np.mean(y)), None, None, n)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + level) / 2, n - 1))
    low, high = np.quantile(_weights(n) @ np.asarray(y, np.float64), [tail, 1 - tail])
    return Interval(float(np.mean(y)), float(low), float(high), n)


def over_seeds(means: Vector, level: float = LEVEL) -> Interval:
    """Student's t: a bootstrap of two to five seeds cannot leave the range of their values, and is far too narrow."""
    n = len(means)
    if n < 2:
        return Interval(float(np.mean(means)), None, None, n)
    return _student(float(np.mean(means)), float(np.var(means, ddof=1)) / n, n - 1, level, n)


def over_both(table: Float[np.ndarray, "seeds photographs"], level: float = LEVEL) -> Interval:
    """Other seeds and other photographs, each photograph being restored by each seed: crossed, not nested.

    Analysis of variance as for readers and cases (Dorfman, Berbaum and Metz 1992; degrees of freedom by Satterthwaite):
    Var = (MS_seeds + max(MS_photographs - MS_both, 0)) / (S U). n: the seeds.
    """
    mean, variance, freedom = _crossed(table)
    return _student(mean, variance, freedom, level, len(table))


def paired(table: Float[np.ndarray, "seeds photographs"], level: float = LEVEL) -> Difference:
    """Whether the differences of pairs have a mean other than zero. table: a row per seed, a column per photograph.

    One seed: signs of photographs flipped (all 2^n up to n = 14, else 20,000 draws), which assumes no distribution and, unlike
    Wilcoxon's ranks, tests the mean that is reported; it speaks of these weights, not of other seeds. Several: Student's t
    with the variance of `over_both`.
    """
    if len(table) == 1:
        return Difference(over_photographs(table[0], level), sign_flip(table[0]))
    mean, variance, freedom = _crossed(table)
    t = abs(mean) / math.sqrt(variance) if variance else math.inf if mean else 0.0
    return Difference(_student(mean, variance, freedom, level, len(table)), 2 * student_cdf(-t, freedom))


def sign_flip(y: Vector) -> float:
    """Two-sided p of the mean under random signs. The least it can be is 2^(1 - n): with 5 values, 0.0625."""
    n = len(y)
    if n <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        sums = np.abs(signs @ y)
        return float(np.mean(sums >= abs(np.sum(y)) * (1 - 1e-12)))
    generator, reached, drawn = np.random.default_rng(0), 1, DRAWS
    for begin in range(0, drawn, 1000):
        signs = generator.choice((-1.0, 1.0), (min(1000, drawn - begin), n))
        reached += int(np.sum(np.abs(signs @ y) >= abs(np.sum(y)) * (1 - 1e-12)))
    return reached / (drawn + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted for the number of comparisons (Holm 1979): of all that are below 0.05, one is wrong in 5 % of cases at most."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def importance(changes: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Share of the variance of scores that the marginal means of each key explain (eta squared), the largest first.

    changes: key -> value, of each score. In a full grid the shares add up to 1 with what keys do together and seeds do; in
    another design keys that change together share what they explain. Empty where all scores are one value.
    """
    y = np.asarray(scores, np.float64)
    total = float(np.sum((y - y.mean()) ** 2)) if len(y) else 0.0
    if total <= 1e-12 * len(y):
        return {}
    found = {}
    for key in dict.fromkeys(key for each in changes for key in each):
        group, count = _numbered([repr(each.get(key)) for each in changes])
        if count < 2:
            continue
        sizes = np.bincount(group)
        means = np.bincount(group, y) / sizes
        found[key] = float(np.sum(sizes * (means - y.mean()) ** 2)) / total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


# --- Student's t ---


def student_cdf(t: float, freedom: float) -> float:
    """P(T <= t), by the incomplete beta function."""
    tail = _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2 if math.isfinite(t) else 0.0
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=1024)
def student_quantile(p: float, freedom: float) -> float:
    """The t of which P(T <= t) = p, by bisection."""
    low, high = -1.0, 1.0
    while student_cdf(low, freedom) > p:
        low *= 2
    while student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised I_x(a, b), by Lentz's continued fraction (Numerical Recipes 6.4)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    f, c, d = 1.0, 1.0, 0.0
    for i in range(500):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _away_from_zero(1 + term * d)
        c = _away_from_zero(1 + term / c)
        f *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return front * (f - 1)


def _away_from_zero(x: float) -> float:
    return x if abs(x) > 1e-300 else 1e-300


def _student(mean: float, variance: float, freedom: float, level: float, n: int) -> Interval:
    half = student_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, n)


# --- tables ---


def _crossed(table: Float[np.ndarray, "seeds photographs"]) -> tuple[float, float, float]:
    """Mean, its variance and the degrees of freedom of that."""
    S, U = table.shape
    mean = float(table.mean())
    of_seeds, of_units = table.mean(1), table.mean(0)
    ms_seeds = U * float(np.sum((of_seeds - mean) ** 2)) / (S - 1)
    if U < 2:
        return mean, ms_seeds / S, S - 1
    ms_units = S * float(np.sum((of_units - mean) ** 2)) / (U - 1)
    rest = table - of_seeds[:, None] - of_units + mean
    ms_both = float(np.sum(rest**2)) / ((S - 1) * (U - 1))
    extra = max(ms_units - ms_both, 0.0)
    total = ms_seeds + extra
    if total <= 0:
        return mean, 0.0, S - 1
    spread = ms_seeds**2 / (S - 1)
    if extra:
        spread += ms_units**2 / (U - 1) + ms_both**2 / ((S - 1) * (U - 1))
    return mean, total / (S * U), total**2 / spread if spread else S - 1


@lru_cache(maxsize=8)
def _weights(n: int) -> NDArray[np.float64]:
    """Rows of the bootstrap: how much each of n values counts in the mean of a draw. The same for all, so that tables agree."""
    draws = max(2000, min(DRAWS, 2_000_000 // n))
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws) / n


def _numbered(names: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    number: dict[Hashable, int] = {}
    found = np.array([number.setdefault(name, len(number)) for name in names], np.intp)
    return found, len(number)
