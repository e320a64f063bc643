"""Is a method as good as its twin? Two one-sided tests against a margin that was stated beforehand.

An interval that includes zero shows that nothing was found; it may be so because the seeds are few. Equivalence is a
claim of its own and needs evidence of its own: that the difference is smaller than a margin, in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from elas_lightning.analysis.statistics import Difference, paired_difference
from elas_lightning.analysis.wording import MINUS, number, plural

# Stated before any result: a method within 2 % of its twin's perplexity counts as its equal.
MARGIN = 0.02
ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t-tests (TOST; Schuirmann 1987) on log-ratios paired by seed.

    Args:
        margin: the ratios ``1 / (1 + margin)`` to ``1 + margin`` count as equal.
        p: the larger of the two one-sided p; None with fewer than two shared seeds.
        low, high: the 90 % interval of the difference in per cent: equivalence at 5 % means that it lies within
            the margin. None with fewer than two shared seeds.
        n: seeds that both sides have.
        lost: runs of either side that diverged; a mean over the others would speak for the lucky ones.
    """

    margin: float
    p: float | None
    low: float | None
    high: float | None
    n: int
    lost: int = 0


def band(margin: float) -> tuple[float, float]:
    """The differences in per cent that count as equal: symmetric in the logarithm."""
    return 100 * math.expm1(-math.log1p(margin)), 100 * margin


def equivalence(a: Mapping[int, float], b: Mapping[int, float], margin: float = MARGIN, lost: int = 0) -> Equivalence:
    """Test whether ``a`` and ``b`` are equal up to a margin.

    The margin is symmetric in the logarithm, so that it does not matter which of the two is named first.

    Args:
        a, b: positive values (perplexities) by seed.
        margin: as a share of ``b``.
        lost: diverged runs of the two sides, which have no value.

    Raises:
        ValueError: for a value or a margin that is not positive.
    """
    if margin <= 0:
        raise ValueError(f"margin is {margin}: give a positive share")
    shared = sorted(set(a) & set(b))
    if any(side[seed] <= 0 for side in (a, b) for seed in shared):
        raise ValueError("an equivalence test on ratios needs positive values")
    n = len(shared)
    if n < 2:
        return Equivalence(margin, None, None, None, n, lost)
    ratios = np.array([math.log(a[seed]) - math.log(b[seed]) for seed in shared])
    mean, error, bound = float(ratios.mean()), float(ratios.std(ddof=1)) / math.sqrt(n), math.log1p(margin)
    reach = float(stats.t.ppf(1 - ALPHA, n - 1)) * error
    # Without any spread the tests are decided by where the constant difference lies.
    nearest = bound - abs(mean)
    p = float(stats.t.sf(nearest / error, n - 1)) if error > 0 else float(nearest <= 0)
    low, high = (100.0 * math.expm1(end) for end in (mean - reach, mean + reach))
    return Equivalence(margin, p, low, high, n, lost)


def verdict(found: Equivalence, difference: Difference | None, adjusted: float | None) -> str:
    """The test in a table's cell; never "equal" for what only was not found to differ.

    Args:
        found: the test.
        difference: the same comparison with its 95 % interval.
        adjusted: p after the table's correction; None where there was no test.
    """
    within = f"{100 * found.margin:g} %"
    if found.lost:
        return f"no: {plural(found.lost, 'run')} diverged"
    if adjusted is None or difference is None or difference.low is None or difference.high is None:
        return "one seed: no test" if found.n == 1 else "not comparable"
    if adjusted < ALPHA:
        return f"yes, within {within}"
    least, most = band(found.margin)
    if difference.low > most or difference.high < least:
        return f"no: differs by more than {within}"
    return "not shown"


def sentence_of(found: Equivalence, adjusted: float | None, a: str, b: str) -> str:
    """The test in a sentence without its full stop.

    Args:
        found: the test.
        adjusted: p after correction.
        a, b: names of the two sides.
    """
    within = f"{100 * found.margin:g} %"
    if found.lost:
        return f"{a} and {b} cannot be called equivalent, since {plural(found.lost, 'run')} of theirs diverged"
    if found.low is None or found.high is None or adjusted is None:
        shared = plural(found.n, "shared seed")
        return f"whether {a} and {b} are equivalent within {within} cannot be tested with {shared}"
    span = f"90 % interval {_signed(found.low)} to {_signed(found.high)} %, {plural(found.n, 'seed')}"
    corrected = "" if adjusted == found.p else ", corrected (Holm)"
    test = f"{span}, {_p(adjusted)} by two one-sided tests{corrected}"
    if adjusted < ALPHA:
        return f"{a} and {b} are equivalent within {within} of perplexity ({test})"
    least, most = band(found.margin)
    why = (
        "they differ by more than that"
        if found.low > most or found.high < least
        else "too few seeds, or a real difference"
    )
    return f"it is not shown that {a} and {b} are equivalent within {within} of perplexity ({test}): {why}"


def pair(a: Mapping[int, float], b: Mapping[int, float], lost: int = 0) -> tuple[Difference | None, Equivalence]:
    """Difference and equivalence of the same two sides."""
    return paired_difference(a, b), equivalence(a, b, lost=lost)


def _signed(value: float) -> str:
    return ("+" if value >= 0 else MINUS) + number(abs(value), 2)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
