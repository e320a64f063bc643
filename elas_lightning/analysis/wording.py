"""Numbers and findings in plain words, the same ones in captions, tables and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from elas_lightning.analysis.statistics import Difference, Estimate
from elas_lightning.trials_table import STATES

MINUS = "\u2212"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits without an exponent; a real minus sign."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}".replace("-", MINUS)


def plus_minus(estimate: Estimate, scale: float = 1.0) -> str:
    """``148.2 ± 3.1``: as many decimals as two digits of the half-width justify; no interval, no ±."""
    if estimate.half_width is None:
        return number(estimate.mean * scale, 4)
    half = estimate.half_width * scale
    if half < 1e-9 * abs(estimate.mean * scale):
        return f"{number(estimate.mean * scale, 4)} ± 0"
    decimals = min(9, max(0, 1 - math.floor(math.log10(half))))
    return f"{estimate.mean * scale:.{decimals}f} ± {half:.{decimals}f}"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def lost(counts: Mapping[str, int]) -> list[str]:
    """The runs that did not complete, by state: ``1 diverged``, ``2 failed``."""
    return [f"{counts[state]} {state}" for state in STATES if state != "complete" and counts.get(state)]


def seeds_phrase(*counts: int) -> str:
    """How the ± of a sentence came about, whose values rest on these numbers of seeds."""
    several = [count for count in counts if count > 1]
    if not several:
        return "one seed, so no interval"
    over = seeds_span(several)
    return f"mean ± 95 % interval over {over}" + ("; one seed has none" if len(several) < len(counts) else "")


def seeds_span(counts: Sequence[int]) -> str:
    """``3 seeds``, ``2 to 3 seeds``."""
    low, high = min(counts), max(counts)
    return f"{low} to {high} seeds" if low < high else plural(high, "seed")


def decimals_of(difference: Difference) -> int:
    """Decimals that a difference deserves: two digits of its half-width, no more than three decimals unless the
    difference itself is that small; without an interval a digit other than zero, where one of three decimals is, and
    with one of no width such a digit in any case: it is a difference that is found."""
    size = math.floor(math.log10(abs(difference.value))) if difference.value else 0
    least = 1 if difference.unit == "%" else 3
    if difference.low is None or difference.high is None:
        return min(3, max(least, -size))
    if difference.high <= difference.low:
        return min(9, max(least, -size))
    half = (difference.high - difference.low) / 2
    most = min(9, max(3, 1 - size))
    return min(most, max(0, 1 - math.floor(math.log10(half))))


def signed(value: float, decimals: int) -> str:
    """A number with its sign: ``+1.2``, ``−0.4``; zero, also after rounding, has none."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def interval(difference: Difference) -> str:
    """The interval of a difference with a sign on each end: ``+0.3 to +2.1``; ``none`` without one."""
    if difference.low is None or difference.high is None:
        return "none"
    decimals = decimals_of(difference)
    return f"{signed(difference.low, decimals)} to {signed(difference.high, decimals)}"


def room(left: Sequence[Difference]) -> str:
    """How large differences could be that were not found, by the ends of their intervals: ``up to 0.3 %``, or that of
    the narrowest and of the widest."""
    ends = [max(abs(end) for end in (d.low, d.high) if end is not None) for d in left]
    unit = "%" if left[0].unit == "%" else "nats"
    low, high = number(min(ends), 2), number(max(ends), 2)
    if low == high:
        return f"up to {high} {unit}"
    return f"up to {low} {unit} where the interval is narrowest and {high} {unit} where it is widest"


def how_many_found(found: int, tested: int) -> str:
    """How many of some intervals leave zero out, as a clause."""
    every = "the interval" if tested == 1 else f"all {tested} intervals"
    if found in (0, tested):
        verb = "leave zero out" if found else "include zero"
        return f"{every} {verb.replace(' ', 's ', 1) if tested == 1 else verb}"
    return f"{found} of {tested} intervals {'leaves' if found == 1 else 'leave'} zero out"


def compare(difference: Difference | None, a: str, b: str, context: str = "", paired: bool = True) -> str:
    """State a difference without claiming more than it shows.

    An interval that includes zero is reported as a difference not found, together with how large it could
    still be: it does not show that the two are equal.

    Args:
        difference: ``a`` against ``b``; None where they share no seed.
        a, b: names of the two sides.
        context: where they were compared, e.g. ``" at rank 32"`` (with its leading space).
        paired: whether by seed; else they share fewer than two seeds.
    """
    if difference is None:
        return f"{a} and {b} share no finished seed{context}, so they cannot be compared"
    unit = " %" if difference.unit == "%" else " nats"
    decimals = decimals_of(difference)
    side = "above" if difference.value >= 0 else "below"
    size = f"{abs(difference.value):.{decimals}f}{unit}"
    if difference.low is None or difference.high is None:
        seeds = "the one seed they share" if paired else "seeds that they do not share"
        return f"{a} is {size} {side} {b}{context} in {seeds}, too few for an interval"
    how = f"paired over {difference.n} seeds" if paired else "unpaired, since they share fewer than two seeds"
    if difference.found:
        ends = sorted((abs(difference.low), abs(difference.high)))
        span = " to ".join(f"{end:.{decimals}f}" for end in ends)
        return f"{a} is {size} (95 % interval {span}) {side} {b}{context}, {how}"
    if difference.value == difference.low == difference.high == 0:
        return f"{a} and {b} are identical{context} in each of {difference.n} seeds"
    reach = f"{max(abs(difference.low), abs(difference.high)):.{decimals}f}{unit}"
    return (
        f"no difference was found between {a} and {b}{context} ({signed(difference.value, decimals)}{unit}, "
        f"95 % interval {interval(difference)}, {how}), which leaves room for one of up to {reach} and "
        f"does not show that they are equal"
    )


def compare_many(found: Mapping[str, Difference], a: str, b: str) -> str:
    """State the same comparison made in several places, in one clause: how often it went which way, how far.

    Args:
        found: the difference of ``a`` against ``b`` by the name of the place.
        a, b: names of the two sides.
    """
    if len(found) <= 1:
        return "".join(compare(difference, a, b, f" with {place}") for place, difference in found.items())
    if all(difference.low is None for difference in found.values()):
        spread = _range([difference.value for difference in found.values()], next(iter(found.values())))
        return f"{a} differs from {b} by {spread} in the one seed they share, too few for intervals"
    groups: dict[str, list[str]] = {"above": [], "below": [], "": [], "untested": []}
    for place, difference in found.items():
        side = "above" if difference.value > 0 else "below"
        groups["untested" if difference.low is None else side if difference.found else ""].append(place)
    clauses = []
    for side in ("above", "below"):
        if places := groups[side]:
            sizes = [abs(found[place].value) for place in places]
            size = _range(sizes, found[places[0]])
            clauses.append(
                f"{a} is {side} {b} with {listing(places)} by {size} (paired by seed, 95 % interval "
                f"without zero{' in each' if len(places) > 1 else ''})"
            )
    if places := groups[""]:
        clauses.append(
            f"no difference was found between {a} and {b} with {listing(places)}, which does not show "
            f"that they are equal"
        )
    if places := groups["untested"]:
        clauses.append(f"{a} and {b} share one seed with {listing(places)}, too few for an interval")
    return "; ".join(clauses)


def _range(values: list[float], like: Difference) -> str:
    unit = " %" if like.unit == "%" else " nats"
    low, high = number(min(values), 2), number(max(values), 2)
    return (low if low == high else f"{low} to {high}") + unit


def listing(items: list[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(clauses: list[str]) -> str:
    """Join clauses into one sentence with a capital and a full stop."""
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[:1].upper()}{text[1:]}."
