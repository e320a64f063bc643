"""Runs side by side: what differs in quality, speed, memory and energy, how surely, and what may not be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from elas_lightning.analysis.compare_select import ENERGY_COLUMNS, Contender, config_differences, select
from elas_lightning.analysis.metrics import Metric, metric_of
from elas_lightning.analysis.run import RunResults
from elas_lightning.analysis.statistics import Difference, paired_difference, unpaired_difference
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import decimals_of, interval, listing, number, plural, plus_minus, signed
from elas_lightning.errors import UserError

_ENERGY = {
    "energy_joules": Metric("energy_joules", "Energy of a run (kJ)", "energy of a run", True, 1e-3, True),
    "tokens_per_joule": Metric("tokens_per_joule", "Tokens per joule", "tokens per joule", False, 1.0, True),
}
_QUALITY = ("val_perplexity", "val_loss", "val_bits_per_byte")
_AMOUNTS = ("parameters", "flops_per_token")
_SPEED = ("tokens_per_second", "peak_memory_bytes", *ENERGY_COLUMNS)


def compared_metric(column: str) -> Metric:
    """A metric of the comparison, the optional ones of energy included."""
    return _ENERGY[column] if column in _ENERGY else metric_of(column)


@dataclass(frozen=True)
class Comparison:
    """Contenders, the first of which the others are held against.

    Args:
        contenders: At least two.
        notes: A sentence for each thing that was left out.
        warnings: A sentence for each thing that forbids a comparison or weakens it.
        unfair: By contender and metric, why it cannot be compared with the first one, in a few words.
    """

    contenders: tuple[Contender, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unfair: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The metrics that somebody measured."""
        every = (*_QUALITY, *_AMOUNTS, *_SPEED)
        return [column for column in every if any(c.values(column) for c in self.contenders)]


@dataclass(frozen=True)
class Against:
    """A contender against the first one, in one metric.

    Args:
        name: The contender.
        column: The metric.
        difference: None where one side has no value.
        how: ``paired`` by seed, or ``unpaired``.
        seeds: How many on each side; the same ones where paired.
    """

    name: str
    column: str
    difference: Difference | None
    how: Literal["paired", "unpaired"]
    seeds: tuple[int, int]


def compare(arguments: Sequence[str]) -> Comparison:
    """Read runs and sweeps and set them side by side.

    Args:
        arguments: See :func:`~elas_lightning.analysis.compare_select.select`.

    Raises:
        UserError: A path that does not exist, or all runs are of one configuration.
    """
    contenders, notes = select(arguments)
    if len(contenders) < 2:
        raise UserError(
            "all these runs have one configuration and differ in their seeds at most: name runs of another one too"
        )
    warnings, unfair = _cautions(contenders)
    return Comparison(tuple(contenders), tuple(notes), tuple(warnings), unfair)


def against_first(comparison: Comparison) -> list[Against]:
    """Every other contender against the first, in every metric that varies."""
    first, *others = comparison.contenders
    found = []
    for other in others:
        for column in comparison.columns:
            a, b = other.values(column), first.values(column)
            unit = compared_metric(column).difference
            shared = set(a) & set(b)
            # one shared seed gives no interval; several that are not shared do
            if len(shared) >= 2 or (shared and min(len(a), len(b)) < 2):
                found.append(Against(other.name, column, paired_difference(a, b, unit), "paired", (len(shared),) * 2))
            else:
                unpaired = unpaired_difference(list(a.values()), list(b.values()), unit)
                found.append(Against(other.name, column, unpaired, "unpaired", (len(a), len(b))))
    return found


def _noted(part: str, *keys: str) -> Callable[[RunResults], str]:
    """Reads what a result file says in one of its parts."""
    return lambda run: ", ".join(str((run.result.get(part) or {}).get(key)) for key in keys)


def _tokens(run: RunResults) -> str:
    tokens = run.metrics.get("tokens")
    # padding differs from seed to seed by a few tokens in ten thousand
    return "unknown" if tokens is None else f"{number(tokens * 1e-6, 3)} million"


# What runs may differ in, how a run tells, what follows, and for which metrics it forbids a comparison.
_CAUTIONS: tuple[tuple[str, Callable[[RunResults], str], str, Sequence[str]], ...] = (
    ("Machines", _noted("environment", "hardware"), "speed, memory and energy are not comparable", _SPEED),
    (
        "Numbers of processes",
        _noted("environment", "world_size"),
        "speed, memory and energy are not comparable",
        _SPEED,
    ),
    ("Precisions", _noted("environment", "precision"), "speed, memory and energy are those of the precision too", ()),
    (
        "Backends",
        _noted("backend", "chosen"),
        "speed, memory and energy compare the backends as well as the models",
        _SPEED,
    ),
    (
        "Corpora",
        _noted("data", "source", "fingerprint"),
        "losses are not of the same text and not comparable",
        _QUALITY,
    ),
    (
        "Tokenizers",
        _noted("data", "tokenizer"),
        "a token is not the same thing, so of the quality figures only bits per byte are comparable",
        _QUALITY[:2],
    ),
    (
        "Validation protocols",
        _noted("data", "sequence_length", "batching", "validation_tokens"),
        "losses are not of the same targets and not comparable (length, batching, tokens)",
        _QUALITY,
    ),
    ("Training tokens", _tokens, "a difference in loss may be one of the length of training", _QUALITY),
)


def _cautions(contenders: Sequence[Contender]) -> tuple[list[str], dict[tuple[str, str], str]]:
    """Warnings, and which metrics of which contenders they make incomparable with the first one's."""
    warnings: list[str] = []
    unfair: dict[tuple[str, str], str] = {}
    first = contenders[0].name
    for what, of, then, columns in _CAUTIONS:
        holders: dict[str, dict[str, None]] = {}
        for contender in contenders:
            for run in contender.runs:
                # the means are over these: that another one diverged early makes them no less comparable
                if run.result["state"] == "complete":
                    holders.setdefault(of(run), {})[contender.name] = None
        if len(holders) < 2:
            continue
        said = "; ".join(f"{value}: {listing(list(names))}" for value, names in holders.items())
        warnings.append(f"{what} differ ({said}): {then}.")
        for contender in contenders:
            # of two contenders all runs must have the one value, within each of them as well as between them
            if sum(bool({first, contender.name} & set(names)) for names in holders.values()) > 1:
                reason = f"{what[:1].lower()}{what[1:]} differ"
                unfair.update({(contender.name, column): reason for column in columns})
    return warnings + _seed_cautions(contenders), unfair


def _seed_cautions(contenders: Sequence[Contender]) -> list[str]:
    """Runs without a result, contenders of one seed, and seeds that are not the same for all."""
    warnings = []
    for contender in contenders:
        for run in contender.runs:
            if run.result["state"] != "complete":
                reason = f": {run.result['reason']}" if run.result.get("reason") else ""
                warnings.append(
                    f"{contender.name}: seed {run.result['seed']} is {run.result['state']}{reason}; it has no part "
                    "in the means."
                )
        if len(contender.values("val_loss")) == 1:
            warnings.append(f"{contender.name} has one complete seed, so there is no interval.")
    seeds = {contender.name: sorted(contender.values("val_loss")) for contender in contenders}
    if len({tuple(found) for found in seeds.values()}) > 1:
        said = "; ".join(f"{name}: {', '.join(map(str, found)) or 'none'}" for name, found in seeds.items())
        warnings.append(
            f"Complete seeds differ ({said}): means are over different seeds; a paired difference is over those shared."
        )
    return warnings


def results_table(comparison: Comparison) -> Table:
    """One row a contender, a column a metric."""
    rows = []
    for contender in comparison.contenders:
        cells = [contender.name]
        for column in comparison.columns:
            found = contender.estimate(column)
            metric = compared_metric(column)
            if found is None:
                cells.append("none" if column in _QUALITY else "not measured")
            elif column in _AMOUNTS:
                cells.append(number(found.mean * metric.scale))
            else:
                cells.append(plus_minus(found, metric.scale))
        complete = sum(run.result["state"] == "complete" for run in contender.runs)
        lost = len(contender.runs) - complete
        rows.append((*cells, f"{complete}" + (f" (+{lost} lost)" if lost else "")))
    caption = (
        "Mean ± half of the 95 % t-interval over seeds; one seed has no interval. Peak memory is what was allocated "
        "on a GPU, or the whole process on a CPU, whose interpreter and libraries it includes."
    )
    heads = [compared_metric(column).label for column in comparison.columns]
    return Table(caption, ("Contender", *heads, "Seeds"), tuple(rows), 1)


def differences_table(comparison: Comparison) -> Table:
    """Every other contender against the first, quality first."""
    rows = []
    for item in against_first(comparison):
        metric, d = compared_metric(item.column), item.difference
        if item.column in _AMOUNTS:
            shown = ("none" if d is None else f"{signed(d.value, 1)} %", "exact", "counted", "")
        elif d is None:
            shown = ("none", "none", "no value on one side", "")
        else:
            unit = " %" if d.unit == "%" else " nats"
            paired = item.how == "paired"
            seeds = plural(item.seeds[0], "seed") if paired else f"{item.seeds[0]} and {item.seeds[1]} seeds"
            ends = interval(d) + (unit if d.low is not None else "")
            reading = comparison.unfair.get((item.name, item.column))
            shown = (
                signed(d.value, decimals_of(d)) + unit,
                ends,
                f"{item.how}, {seeds}",
                f"not comparable: {reading}" if reading else _reading(d, metric),
            )
        rows.append((item.name, metric.label, *shown))
    caption = (
        f"Against {comparison.contenders[0].name}, with 95 % t-intervals: paired by seed where two or more seeds are "
        "shared, else unpaired (Welch). Each interval stands on its own; with many of them one in twenty leaves zero "
        "out by chance. “Not found” bounds a difference and does not show that there is none."
    )
    return Table(caption, ("Contender", "Metric", "Difference", "95 % interval", "How", "Reading"), tuple(rows), 2)


def _reading(d: Difference, metric: Metric) -> str:
    if d.low is None:
        return "one seed: no test"
    if not d.found:
        return "not found"
    return "better" if (d.value < 0) == metric.lower_is_better else "worse"


def configuration_table(comparison: Comparison) -> Table:
    """The configuration keys that differ."""
    found = config_differences(comparison.contenders)
    rows = tuple((key, *values) for key, values in found.items())
    names = tuple(contender.name for contender in comparison.contenders)
    caption = "Keys whose values differ; all others are equal. Seeds, and where a run writes, are left out."
    return Table(caption, ("Key", *names), rows, len(names) + 1)
