"""Loss against size or tokens: a power law with an offset, and whether the data determine it at all.

``loss = E + A x^-a`` (Kaplan et al. 2020; Hoffmann et al. 2022, without the term of the other quantity, which is held
fixed). Three constants need three sizes, and more to be checked. Where a straight line in the logarithm fits as well
as any curve, offset and exponent can be traded against each other at will: then there is no fit, but a reason.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

# A curve is not followed further than this many times the largest size it was fitted to.
REACH = 10.0
_LEAST_PLACES = 3
_LEAST_SEEDS = 3
_EXPONENTS = (0.02, 2.0)
_MOST_ENUMERATED = 5
_RESAMPLES = 1000
_UNDETERMINED_SHARE = 0.05


class Undetermined(Exception):
    """The data do not say which curve; the message is the reason, as the end of a sentence."""


@dataclass(frozen=True)
class PowerLaw:
    """``offset + scale (x / unit)^-exponent``.

    Args:
        offset: what is left at infinite ``x``, in nats.
        scale: what a factor can still save at ``x = unit``, in nats.
        exponent: how fast it goes.
        unit: the geometric mean of the sizes that were fitted, so that the constants are of ordinary magnitude.
    """

    offset: float
    scale: float
    exponent: float
    unit: float

    def at(self, x: float | np.ndarray) -> np.ndarray:
        """The curve at ``x``."""
        return self.offset + self.scale * (np.asarray(x, float) / self.unit) ** -self.exponent


@dataclass(frozen=True)
class Fit:
    """A curve with its spread over seeds.

    Args:
        law: fitted to the means over seeds.
        exponent: 95 % bootstrap interval of the exponent.
        resamples: the curves of the resampled seeds.
        places: the sizes that were fitted, ascending.
        misfit: largest distance of a mean from the curve, in nats; None with three sizes, where there is none.
        seeds: how many seeds each size has.
    """

    law: PowerLaw
    exponent: tuple[float, float]
    resamples: tuple[PowerLaw, ...]
    places: tuple[float, ...]
    misfit: float | None
    seeds: int

    @property
    def reach(self) -> float:
        """The largest size at which the curve is quoted."""
        return REACH * self.places[-1]

    def at(self, x: float) -> tuple[float, float, float] | None:
        """Loss at ``x`` with its 95 % bootstrap interval; None beyond the reach of the data."""
        if x > self.reach:
            return None
        found = [float(law.at(x)) for law in self.resamples]
        low, high = np.quantile(found, [0.025, 0.975])
        return float(self.law.at(x)), float(low), float(high)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit by least squares.

    For a given exponent the other two constants are a straight line through ``x^-exponent``, so that the search is
    over one number and finds the best one wherever it begins.

    Args:
        x: sizes, positive.
        y: losses.

    Raises:
        Undetermined: fewer than three sizes, or no curve fits better than all others.
    """
    sizes, losses = np.asarray(x, float), np.asarray(y, float)
    places = np.unique(sizes)
    _check_places(len(places))
    unit = float(np.exp(np.log(places).mean()))

    def line(exponent: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset, scale and squared error for an exponent, or for each of several."""
        term = (sizes / unit) ** -np.asarray(exponent, float)[..., None]
        spread = term - term.mean(axis=-1, keepdims=True)
        scale = (spread * losses).sum(axis=-1) / (spread**2).sum(axis=-1)
        offset = losses.mean() - scale * term.mean(axis=-1)
        error = ((offset[..., None] + scale[..., None] * term - losses) ** 2).sum(axis=-1)
        return offset, scale, error

    grid = np.geomspace(*_EXPONENTS, 120)
    _, scales, errors = line(grid)
    best = int(np.argmin(errors))
    if scales[best] <= 1e-9 * abs(losses).max():
        raise Undetermined("the loss does not fall with the size")
    if best == 0:
        raise Undetermined(
            "the loss falls along a straight line in the logarithm of the size, or faster: nothing shows where it "
            "levels off"
        )
    if best == len(grid) - 1:
        raise Undetermined("all of the fall lies between the smallest sizes: nothing shows how fast it goes on")
    found = minimize_scalar(
        lambda exponent: float(line(exponent)[2]),
        bounds=(grid[best - 1], grid[best + 1]),
        method="bounded",
        options={"xatol": 1e-7},
    )
    offset, scale, _ = line(float(found.x))
    if offset <= 0:
        raise Undetermined("the best curve ends at no loss at all: nothing shows where it levels off")
    return PowerLaw(float(offset), float(scale), float(found.x), unit)


def fit(data: Mapping[float, Mapping[int, float]]) -> Fit:
    """Fit a curve to means over seeds, and again to each resample of the seeds.

    Seeds are resampled for all sizes together: a seed gives every size the same documents in the same order.

    Args:
        data: loss by seed, by size.

    Raises:
        Undetermined: as :func:`power_law`; or sizes do not share three seeds; or too many resamples have no fit.
    """
    places = sorted(data)
    shared = sorted(set.intersection(*(set(data[x]) for x in places))) if places else []
    _check_places(len(places))
    if len(shared) < _LEAST_SEEDS:
        raise Undetermined(
            f"the sizes share {len(shared)} finished seeds, and {_LEAST_SEEDS} are needed to see the spread"
        )
    table = np.array([[data[x][seed] for seed in shared] for x in places])
    law = power_law(places, table.mean(axis=1).tolist())
    laws: list[PowerLaw] = []
    failed = 0
    for draw, times in _draws(len(shared)).items():
        try:
            laws += [power_law(places, table[:, draw].mean(axis=1).tolist())] * times
        except Undetermined:
            failed += times
    if failed > _UNDETERMINED_SHARE * (failed + len(laws)):
        raise Undetermined(
            f"a curve comes out for the means, but in {100 * failed / (failed + len(laws)):.0f} % of the resamples of "
            "the seeds none does"
        )
    low, high = np.quantile([found.exponent for found in laws], [0.025, 0.975])
    misfit = float(np.abs(table.mean(axis=1) - law.at(np.array(places))).max())
    return Fit(
        law=law,
        exponent=(float(low), float(high)),
        resamples=tuple(laws),
        places=tuple(places),
        misfit=misfit if len(places) > _LEAST_PLACES else None,
        seeds=len(shared),
    )


def _check_places(count: int) -> None:
    if count < _LEAST_PLACES:
        raise Undetermined(f"three constants need {_LEAST_PLACES} sizes or more, and there are {count}")


def _draws(seeds: int) -> Counter[tuple[int, ...]]:
    """All ways to draw as many seeds with replacement, or a thousand of them where the ways are too many.

    The order of a draw does not matter, so that each is fitted once and counted as often as it came.
    """
    if seeds <= _MOST_ENUMERATED:
        drawn = list(itertools.product(range(seeds), repeat=seeds))
    else:
        generator = np.random.default_rng(0)
        drawn = [tuple(generator.integers(seeds, size=seeds).tolist()) for _ in range(_RESAMPLES)]
    return Counter(tuple(sorted(draw)) for draw in drawn)


def factor(low: float, high: float) -> str:
    """``about 3,000 times``: how much larger one size is than another."""
    ratio = high / low
    digits = 10 ** max(0, math.floor(math.log10(ratio)) - 1)
    return f"about {round(ratio / digits) * digits:,} times" if ratio >= 10 else f"{ratio:.1f} times"
