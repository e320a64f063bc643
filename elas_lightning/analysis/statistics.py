"""What can be said from a handful of seeds: intervals, seed-paired differences, many comparisons.

Perplexity or its logarithm? A level ("148 ± 3") is the plain mean of the seeds' perplexities, because that is
what a reader gets from averaging trials.csv by hand. A difference is taken between log-perplexities, seed by
seed, and given in per cent: noise in perplexity grows with perplexity, its logarithm (the loss, an average
over tokens) is close to symmetric, and a ratio means the same at rank 4 and at rank 32. With seeds that
differ by a few per cent the two ways of averaging differ in the fourth digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

Unit = Literal["%", "absolute"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval; ``half_width`` is None with fewer than two seeds."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean itself where there is no interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the mean itself where there is no interval."""
        return self.mean + (self.half_width or 0.0)


@dataclass(frozen=True)
class Difference:
    """``a`` against ``b``, paired by seed.

    Args:
        value: mean difference, in ``unit``.
        low, high: 95 % t-interval, None with fewer than two shared seeds.
        p: two-sided p of the paired t-test, None with fewer than two shared seeds.
        n: seeds that both sides have.
        unit: ``"%"`` (from log-ratios) or ``"absolute"``.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    unit: Unit

    @property
    def found(self) -> bool:
        """True when the interval leaves zero out. False is ignorance, not equality."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t-interval of one value a seed; None for no values.

    Raises:
        ValueError: if a value is not finite. Diverged runs have no value: count them, do not average them.
    """
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        raise ValueError("estimate needs finite values; leave diverged runs out and count them instead")
    if data.size == 0:
        return None
    if data.size == 1:
        return Estimate(float(data[0]), None, 1)
    return Estimate(float(data.mean()), _half_width(data), int(data.size))


def _half_width(data: np.ndarray) -> float:
    n = data.size
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * data.std(ddof=1) / math.sqrt(n))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], unit: Unit = "%") -> Difference | None:
    """Compare two points over the seeds they share.

    The same seed gives the same initial weights and the same order of data, so pairing removes what the seed
    contributes to both.

    Args:
        a, b: value by seed; positive for ``unit="%"``.
        unit: ``"%"``: exp(mean log-ratio) - 1; ``"absolute"``: mean of ``a - b`` (for losses, already logs).

    Returns:
        The difference, or None where no seed is shared.

    Raises:
        ValueError: for a value that is not positive with ``unit="%"``.
    """
    shared = sorted(set(a) & set(b))
    if not shared:
        return None
    left, right = np.array([a[s] for s in shared], float), np.array([b[s] for s in shared], float)
    if unit == "%":
        if (left <= 0).any() or (right <= 0).any():
            raise ValueError("a difference in per cent needs positive values")
        data = np.log(left) - np.log(right)
    else:
        data = left - right

    mean, n = float(data.mean()), len(shared)
    if n == 1:
        return Difference(_shown(mean, unit), None, None, None, 1, unit)
    half = _half_width(data)
    error = float(data.std(ddof=1)) / math.sqrt(n)
    # Without any spread t is 0/0 or infinite: identical sides carry no evidence, a constant gap all of it.
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return _difference(mean, half, p, n, unit)


def unpaired_difference(a: Sequence[float], b: Sequence[float], unit: Unit) -> Difference | None:
    """Welch's interval of a difference of means, for sides that share no seeds.

    Args:
        a, b: values of the two sides; positive for ``unit="%"``.
        unit: as for :func:`paired_difference`.

    Returns:
        The difference with ``n`` the smaller of the two numbers of seeds, without an interval where a side has one
        seed; None where a side has none.
    """
    if not a or not b:
        return None
    left, right = (np.log(x) if unit == "%" else np.asarray(x, float) for x in (a, b))
    mean, n = float(left.mean() - right.mean()), min(len(a), len(b))
    if n == 1:
        return Difference(_shown(mean, unit), None, None, None, 1, unit)
    parts = [float(side.var(ddof=1)) / side.size for side in (left, right)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return _difference(mean, 0.0, float(mean == 0), n, unit)
    # Welch and Satterthwaite: how many seeds two unequal spreads are worth
    freedom = sum(parts) ** 2 / sum(p**2 / (side.size - 1) for p, side in zip(parts, (left, right), strict=True))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return _difference(mean, half, p, n, unit)


def _difference(mean: float, half: float, p: float, n: int, unit: Unit) -> Difference:
    return Difference(_shown(mean, unit), _shown(mean - half, unit), _shown(mean + half, unit), p, n, unit)


def _shown(difference: float, unit: Unit) -> float:
    return 100.0 * math.expm1(difference) if unit == "%" else difference


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction, which bounds the chance of even one false finding.

    Args:
        p_values: one a comparison; None where there was no test. Those do not count towards the family.

    Returns:
        Adjusted p in the same order, None kept.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        # The running maximum keeps the order: a smaller p may not end up with a larger adjusted one.
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = running
    return adjusted
