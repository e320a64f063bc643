"""Loss against size or budget in the parts that vary it, fitted where the data allow it, and what that does not say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.extrapolation import REACH, Fit, Undetermined, factor, fit
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.paper.load import Paper
from elas_lightning.analysis.paper.published import published
from elas_lightning.analysis.paper.table import NOT_RUN
from elas_lightning.analysis.parameters import level_name
from elas_lightning.analysis.statistics import estimate
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import listing, number, plus_minus

# A searched parameter of this name varies that quantity.
AXES = {"size": "parameters", "budget": "tokens"}
_NOUNS = {"parameters": "parameters", "tokens": "training tokens"}


@dataclass(frozen=True)
class Series:
    """One method over several sizes.

    Args:
        part: the sweep.
        axis: ``parameters`` or ``tokens``.
        name: the other searched parameters' levels.
        data: validation loss by seed, by size.
        fit: the curve; None where there is none.
        reason: why there is none, as the end of a sentence.
        lost: diverged runs, which no mean has in it.
        waiting: sizes without a complete run.
    """

    part: str
    axis: str
    name: str
    data: dict[float, dict[int, float]]
    fit: Fit | None
    reason: str
    lost: int
    waiting: tuple[str, ...]


def scaling_series(paper: Paper) -> list[Series]:
    """Every method of every part that searches a size or a budget."""
    return [
        series
        for part, results in paper.parts.items()
        for name, axis in AXES.items()
        if name in results.names
        for series in _series(part, results, name, axis)
    ]


def _series(part: str, results: SweepResults, name: str, axis: str) -> list[Series]:
    others = [other for other in results.names if other != name]
    found = []
    for levels in product(*(results.parameter(other).levels for other in others)):
        rows = results.trials
        for other, level in zip(others, levels, strict=True):
            rows = rows[rows[other] == level]
        label = ", ".join(level_name(results.parameter(o), level) for o, level in zip(others, levels, strict=True))
        done = rows[(rows["state"] == "complete") & np.isfinite(rows["val_loss"]) & (rows[axis] > 0)]
        data: dict[float, dict[int, float]] = {}
        # by level, since padding makes a budget's tokens differ a little from seed to seed
        for _, group in done.groupby(name, sort=False):
            by_seed = zip(group["seed"], group["val_loss"], strict=True)
            data.setdefault(float(group[axis].mean()), {}).update((int(s), float(loss)) for s, loss in by_seed)
        data = dict(sorted(data.items()))
        lost = int((rows["state"] == "diverged").sum())
        waiting = tuple(
            level_name(results.parameter(name), level)
            for level in results.parameter(name).levels
            if level not in set(done[name])
        )
        curve, why = None, ""
        try:
            curve = fit(data)
        except Undetermined as reason:
            why = str(reason)
        found.append(Series(part, axis, label, data, curve, why, lost, waiting))
    return found


def scaling_sentences(series: list[Series]) -> list[str]:
    """What the fits say, what they do not, and why there is none where there is none."""
    return [text for _, text in scaling_answers(series)]


def scaling_answers(series: list[Series]) -> Iterator[tuple[bool, str]]:
    """The sentences, and of each whether it is about a fit that there is."""
    if not series:
        yield False, "No part has runs at several sizes or budgets yet, so nothing is fitted."
    for one in series:
        what = f"{one.name} over {_NOUNS[one.axis]}"
        if one.lost:
            what += f" ({one.lost} diverged, in no mean)"
        if one.fit is None:
            yield False, f"{what}: no curve is fitted, since {one.reason}."
            continue
        law = one.fit.law
        check = (
            f"the curve misses no mean by more than {number(one.fit.misfit, 2)} nats"
            if one.fit.misfit is not None
            else "three constants go through three means exactly, so that nothing checks the form of the curve"
        )
        yield (
            True,
            f"{what}: loss falls with exponent {number(law.exponent, 2)} (95 % bootstrap interval "
            f"{number(one.fit.exponent[0], 2)} to {number(one.fit.exponent[1], 2)} over {one.fit.seeds} seeds) "
            f"towards {number(law.offset, 3)} nats; {check}.",
        )
        yield from ((True, text) for text in _targets(one, one.fit))
    sizes = sorted({x for one in series if one.axis == "parameters" for x in one.data})
    if sizes:
        yield any(one.fit for one in series), _what_it_does_not_say(sizes)


def _targets(one: Series, found: Fit) -> list[str]:
    if one.axis != "parameters":
        return []
    quoted = []
    for name, target in published()["extrapolated_to"].items():
        at = found.at(target)
        if at is not None:
            mean, low, high = at
            quoted.append(
                f"{number(mean, 3)} nats at {name} (95 % bootstrap interval {number(low, 3)} to {number(high, 3)})"
            )
    if not quoted:
        return []
    return [f"Followed further, {one.name} would come to {listing(quoted)}, if nothing changes on the way."]


def _what_it_does_not_say(sizes: list[float]) -> str:
    largest = sizes[-1]
    targets = published()["extrapolated_to"]
    beyond = {name: target for name, target in targets.items() if target > REACH * largest}
    text = (
        f"All sizes here lie between {number(sizes[0] / 1e6)} and {number(largest / 1e6)} million parameters, "
        "embeddings included, at one number of tokens each and one learning rate for all. "
    )
    if beyond:
        away = listing([f"{name} is {factor(largest, target)} larger" for name, target in beyond.items()])
        text += (
            f"{away} than the largest: no loss is quoted at more than {REACH:g} times it, and nothing here supports a "
            f"claim about {listing(list(beyond))}. "
        )
    return text + (
        "What such a fit can say is whether the cost of 2:4 grows or shrinks over the sizes that were run. The "
        "bootstrap knows the seeds only: its 95 % intervals are too narrow where these are few (in simulations with "
        "the right curve they hold the truth in about 7 of 10 cases with three seeds, 9 of 10 with five), and it "
        "knows nothing of a wrong form of the curve."
    )


def scaling_table(series: list[Series]) -> Table | None:
    """The means that the curves are fitted to; None without any."""
    rows = []
    for one in series:
        for x, by_seed in one.data.items():
            found = estimate(list(by_seed.values()))
            assert found is not None  # a size is there because a seed is
            at = f"{float(one.fit.law.at(x)):.3f}" if one.fit else "no fit"
            size = f"{number(x / 1e6)} M {_NOUNS[one.axis]}"
            rows.append((one.part, one.name, size, plus_minus(found), str(found.n), at))
        rows += [(one.part, one.name, level, NOT_RUN, "0", "") for level in one.waiting]
    if not rows:
        return None
    columns = ("Part", "Method", "Size", "Validation loss (nats)", "Seeds", "Fitted")
    caption = (
        "Mean ± half of the 95 % t-interval over seeds, and the curve, which is fitted to the seeds that all sizes "
        "share."
    )
    return Table(caption, columns, tuple(rows), 3)


@style.styled
def scaling_figure(series: list[Series]) -> Figure | None:
    """Loss against size with its intervals, fitted curves up to their reach; None where no series has two sizes."""
    shown = [one for one in series if len(one.data) > 1 and one.axis == series[0].axis]
    if not shown:
        return None
    figure = style.new_figure()
    ax = figure.add_subplot()
    ends = []
    for i, one in enumerate(shown):
        look = style.look(i)
        xs = np.array(list(one.data)) * 1e-6
        found = [e for by_seed in one.data.values() if (e := estimate(list(by_seed.values())))]
        ax.errorbar(
            xs * 1.01**i,
            [e.mean for e in found],
            yerr=[e.half_width or 0.0 for e in found],
            color=look.color,
            marker=look.marker,
            linestyle="none" if one.fit else look.linestyle,
        )
        last = found[-1].mean
        if one.fit:
            curve = np.geomspace(xs[0], one.fit.reach * 1e-6, 100)
            inside = curve <= xs[-1]
            ax.plot(curve[inside], one.fit.law.at(curve[inside] * 1e6), color=look.color)
            ax.plot(curve[~inside], one.fit.law.at(curve[~inside] * 1e6), color=look.color, linestyle=":")
            spread = np.array([law.at(curve * 1e6) for law in one.fit.resamples])
            ax.fill_between(
                curve, *np.quantile(spread, [0.025, 0.975], axis=0), color=look.color, alpha=0.12, linewidth=0
            )
            last = float(one.fit.law.at(one.fit.reach))
        ends.append((last, one.name, look))
    ax.set_xscale("log")
    ax.set_xlabel(f"{_NOUNS[shown[0].axis].capitalize()} (millions)")
    ax.set_ylabel("Validation loss (nats per token)")
    ax.set_ylim(*ax.get_ylim())  # final, as the labels at the ends need it
    style.plain_numbers(ax, "y")
    style.plain_numbers(ax, "x")
    style.label_ends(ax, ends)
    return figure
