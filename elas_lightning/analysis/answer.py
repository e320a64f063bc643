"""The words of a report: the answer, the limits and the losses, all worked out from the result files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from elas_lightning.analysis.comparisons import Compared, comparisons, twin_comparisons
from elas_lightning.analysis.equivalence import ALPHA
from elas_lightning.analysis.load import SweepResults, planned_runs, planned_seeds
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.points import best, describe, gather
from elas_lightning.analysis.statistics import Difference, holm
from elas_lightning.analysis.wording import (
    compare,
    decimals_of,
    listing,
    lost,
    number,
    plural,
    plus_minus,
    room,
    seeds_phrase,
    seeds_span,
    sentence,
)

# The budget at which compute-optimal training of a dense language model settles (Hoffmann et al., 2022).
USUAL_TOKENS_PER_PARAMETER = 20
# Comparisons that an answer names one by one.
_MOST_NAMED = 3


def answer(results: SweepResults, captions: list[dict[str, Any]]) -> list[str]:
    """Two to four sentences: the first finding of a figure, the best point, the comparisons, the losses."""
    metric = metric_of(results.objective)
    points = gather(results, results.names, metric.column)
    top = best(points, metric.column)
    if top is None or top.estimate is None:
        return [f"No run has come to a {metric.noun}, so there is no answer yet.", _completeness(results)]
    # what `parallel` finds is the best point, which has a sentence of its own
    said = [figure["caption"] for figure in captions if figure["kind"] != "parallel"][:1]
    value = plus_minus(top.estimate, metric.scale)
    count = sum(bool(point.values) for point in points)
    tried = "tried" if count == len(points) else "that finished"
    setting = describe(results, top.levels)
    which = f"best of {count} settings" if count > 1 else "one setting"
    said.append(
        f"The {which} {tried} reaches a {metric.noun} of {value} "
        f"({seeds_phrase(top.estimate.n)}){f', with {setting}' if setting else ''}"
        + _against_unigram(results, top.estimate.mean)
        + "."
    )
    if twins := about_twins(results):
        said.append(twins)
    if len(others := _tested(comparisons(results))) > 1:  # a figure's caption has the only one
        said.append(_how_many_found(others, "paired by seed"))
    said.append(_completeness(results))
    return said


def about_twins(results: SweepResults) -> str:
    """What the comparisons with twins found, in a sentence; empty before the first pair has two seeds."""
    found = _tested(twin_comparisons(results))
    return _how_many_found(found, "of a choice with the twin that the sweep names for it") if found else ""


def _tested(rows: list[Compared]) -> list[tuple[str, str, str, Difference]]:
    return [(where, level, base, d) for where, level, base, d, _ in rows if d is not None and d.p is not None]


def _how_many_found(found: list[tuple[str, str, str, Difference]], kind: str) -> str:
    """How many comparisons of a kind found a difference; which, where they are few."""
    if len(found) == 1:
        ((where, level, base, d),) = found
        return sentence([compare(d, level, base, where and f" with {where}")])
    clear = [comparison for comparison in found if comparison[-1].found]
    adjusted = holm([d.p for *_, d in found])
    kept = sum(d.found and p is not None and p < ALPHA for (*_, d), p in zip(found, adjusted, strict=True))
    count = len(found)
    # each interval stands on its own: of many, one in twenty leaves zero out by chance
    corrected = f" ({kept} after correction for all {count}, Holm)" if kept < len(clear) else ""
    named = f": {listing([_in_words(*comparison) for comparison in clear])}" if 0 < len(clear) <= _MOST_NAMED else ""
    if len(clear) == count:
        every = "Both" if count == 2 else f"All {count}"
        return f"{every} comparisons {kind} have a 95 % interval without zero{corrected}{named}."
    some = {0: "none has", 1: "1 has"}.get(len(clear), f"{len(clear)} have")
    return (
        f"Of {count} comparisons {kind}, {some} a 95 % interval without zero{corrected}{named}; "
        f"{'for the others ' if clear else ''}no difference was found, which leaves room for one of "
        f"{room([d for *_, d in found if not d.found])}."
    )


def _in_words(where: str, level: str, base: str, found: Difference) -> str:
    size = f"{abs(found.value):.{decimals_of(found)}f} {'%' if found.unit == '%' else 'nats'}"
    return f"{level} is {size} {'above' if found.value > 0 else 'below'} {base}{where and f' with {where}'}"


def _against_unigram(results: SweepResults, perplexity: float) -> str:
    unigram = (results.summary.get("data") or {}).get("unigram_perplexity")
    if results.objective != "val_perplexity" or not unigram:
        return ""
    if perplexity >= unigram:
        return f", no better than the {number(unigram)} of guessing by token frequency alone"
    return f", against {number(unigram)} for guessing by token frequency alone"


def _completeness(results: SweepResults) -> str:
    counts = Counter(results.trials["state"])
    planned = max(planned_runs(results.summary), len(results.trials))
    said = lost(counts)
    if waiting := planned - len(results.trials):
        said.append(f"{waiting} not finished")
    if not said:
        return "The one planned run completed." if planned == 1 else f"All {planned} planned runs completed."
    return f"{counts['complete']} of {planned} planned runs completed; {listing(said)}."


def limits(results: SweepResults) -> list[str]:
    """What the numbers cannot carry, stated from the numbers themselves."""
    done = results.trials[results.trials["state"] == "complete"]
    said = []
    if (ratio := tokens_per_parameter(done)) is not None:
        size = f"{_span(done['parameters'].dropna() / 1e6)} million"
        text = f"The models have {size} parameters and saw {_span(ratio)} training tokens per parameter"
        if ratio.max() < USUAL_TOKENS_PER_PARAMETER:
            text += (
                f", less than the {USUAL_TOKENS_PER_PARAMETER} usual for a trained model: an order between "
                f"methods seen this early may change with a larger budget"
            )
        said.append(text + ".")
    # Seeds that really completed, not those that were planned.
    points = gather(results, results.names, results.objective)
    seeds = [found.n for point in points if (found := point.estimate)]
    if seeds and max(seeds) == 1:
        said.append("There is one seed: nothing here can tell a difference between settings from chance.")
    elif seeds:
        said.append(
            f"Intervals rest on {seeds_span([n for n in seeds if n > 1])} and take the seeds' values as normally "
            "distributed; they cover initialisation and data order, not another corpus, tokenizer or size."
        )
    searched = {key for search in results.summary["search"].values() for key in search.get("keys", ())}
    if "lr" not in results.names and "model.optimizer.lr" not in searched:
        said.append(
            "The learning rate was not searched in this sweep: a setting that would have liked another one "
            "is shown at a disadvantage."
        )
    names = [name for name in results.names if len(done[name].unique()) > 1]
    if len(done) and len(names) > 0:
        said.append(
            "The best setting was picked by the same validation data it is reported on, so it is flattered "
            "slightly, the more the more settings were tried."
        )
    if len(done) and done["peak_memory_bytes"].isna().all():
        said.append("Peak memory was not measured on this device.")
    hardware = {str((r.get("environment") or {}).get("hardware")) for r in results.results.values()}
    if len(hardware) > 1:
        said.append(f"Runs ran on different hardware ({listing(sorted(hardware))}): their speeds are not comparable.")
    return said


def tokens_per_parameter(trials: pd.DataFrame) -> pd.Series | None:
    """Training tokens per parameter of each complete run; None where no run tells."""
    known = trials[(trials["state"] == "complete") & (trials["parameters"] > 0) & trials["tokens"].notna()]
    return known["tokens"] / known["parameters"] if len(known) else None


def _span(values: pd.Series, show: Callable[[float], str] = number) -> str:
    low, high = show(values.min()), show(values.max())
    return low if low == high else f"{low} to {high}"


def losses(results: SweepResults) -> list[tuple[str, str, str, str, str]]:
    """Runs that did not complete: run, setting, seed, state, reason."""
    rows = []
    for _, row in results.trials[results.trials["state"] != "complete"].iterrows():
        setting = describe(results, {name: row[name] for name in results.names})
        # the run's own folder may be on another machine
        known = row.get("reason") or results.results.get(row["run"], {}).get("reason")
        reason = str(known or "no reason recorded")
        rows.append((row["run"], setting, str(row["seed"]), row["state"], reason))
    return rows


def facts(results: SweepResults) -> list[tuple[str, str]]:
    """What ran, on what, with which versions: label and value."""
    summary = results.summary
    data, environment = summary.get("data") or {}, summary.get("environment") or {}
    done = results.trials[results.trials["state"] == "complete"]
    tokens = done["tokens"].dropna()
    runs = results.results.values()
    backends = Counter(f"{b.get('chosen')} ({b.get('why')})" for run in runs if (b := run.get("backend")))
    times = sorted(str(run[key]) for run in runs for key in ("started", "finished") if run.get(key))
    text, unigram, seconds = data.get("fingerprint"), data.get("unigram_perplexity"), summary.get("seconds")
    baseline = unigram and f"perplexity {number(unigram)}: guessing each token by its frequency alone"
    rows = [
        ("Size", summary.get("size")),
        ("Data", _joined([data.get("source"), text and f"fingerprint {text}"])),
        ("Tokenizer", data.get("tokenizer")),
        ("Unigram baseline", baseline),
        ("Seeds", ", ".join(map(str, planned_seeds(summary)))),
        ("Sampler", summary.get("sampler")),
        ("Pruner", None if summary.get("pruner") == "none" else summary.get("pruner")),
        ("Training tokens", f"{_span(tokens, '{:,.0f}'.format)} a run" if len(tokens) else None),
        ("Backend", ", ".join(f"{name}: {plural(count, 'run')}" for name, count in sorted(backends.items()))),
        ("Hardware", _joined(environment.get("hardware"))),
        ("Python", environment.get("python")),
        ("Versions", _joined(environment.get("versions"))),
        ("Time", seconds is not None and f"{float(seconds) / 60:.1f} minutes in all"),
        ("Ran", times and f"{_minute(times[0])} to {_minute(times[-1])}"),
    ]
    return [(label, str(value)) for label, value in rows if value]


def _minute(timestamp: str) -> str:
    """An ISO time without its seconds and its T; the zone stays as it was written."""
    zone = timestamp[19:].lstrip(".0123456789").replace("+00:00", "UTC")
    return f"{timestamp[:16].replace('T', ' ')} {zone}".strip()


def _joined(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_joined(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_joined(item) for item in value if item)
    return "" if value is None else str(value)
