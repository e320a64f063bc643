"""A comparison on the screen, and as a folder: one page that opens offline, tables as CSV, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Column
from rich.table import Table as ScreenTable

from elas_lightning.analysis import style
from elas_lightning.analysis.compare import (
    Against,
    Comparison,
    against_first,
    configuration_table,
    differences_table,
    results_table,
)
from elas_lightning.analysis.compare_select import as_sweep
from elas_lightning.analysis.page import data_uri, render, table_html
from elas_lightning.analysis.plots.base import CannotDraw
from elas_lightning.analysis.plots.curves import curves
from elas_lightning.analysis.plots.pareto import pareto
from elas_lightning.analysis.wording import compare, listing, number, plural, plus_minus, sentence
from elas_lightning.errors import UserError

_FIGURES: Mapping[str, tuple[str, Any, dict[str, str]]] = {
    "loss_curves": ("Loss during training", curves, {"series": "contender"}),
    "pareto_flops": ("Perplexity against compute", pareto, {"series": "contender", "x": "flops_per_token"}),
    "pareto_memory": ("Perplexity against memory", pareto, {"series": "contender", "x": "peak_memory_bytes"}),
    "pareto_parameters": ("Perplexity against size", pareto, {"series": "contender", "x": "parameters"}),
}

_MOST_SENTENCES = 4  # contenders that get a sentence each
_ABREAST = 3  # contenders beside the first that a terminal of 80 columns has room for


def show(comparison: Comparison, console: Console) -> None:
    """Print warnings, each metric with its difference from the first contender, and the configuration."""
    say = partial(console.print, soft_wrap=True, highlight=False)
    for warning in (*comparison.warnings, *comparison.notes):
        say(f"! {warning}")
    results, configuration = results_table(comparison), configuration_table(comparison)
    differences = {(row[0], row[1]): row for row in differences_table(comparison).rows}
    first, *others = range(len(comparison.contenders))
    for i in range(0, len(others), _ABREAST):
        shown = [first, *others[i : i + _ABREAST]]
        names = [comparison.contenders[j].name for j in shown]
        table = _screen_table("metric", names)
        for k, metric in enumerate(results.columns[1:], start=1):
            cells = []
            for j, name in zip(shown, names, strict=True):
                cell = results.rows[j][k]
                if found := differences.get((name, metric)):
                    _, _, difference, ends, _, reading = found
                    known = f" ({ends})" if ends not in ("none", "exact") else ""
                    cell += f"\n{difference}{known}" + (f"\n{reading}" if reading else "")
                cells.append(cell)
            table.add_row(metric, *cells)
        console.print(table)
        table = _screen_table("configuration key that differs", names)
        for row in configuration.rows:
            table.add_row(row[0], *(row[1 + j] for j in shown))
        console.print(table)
    say(
        f"± and intervals: 95 % (t); differences from {comparison.contenders[0].name}, paired by seed where two or "
        "more are shared"
    )


def _screen_table(first: str, names: list[str]) -> ScreenTable:
    columns = [Column(first, overflow="fold")]
    return ScreenTable(*columns, *(Column(name, overflow="fold") for name in names), show_lines=True)


def write(comparison: Comparison, out: Path, command: str) -> Path:
    """Write ``compare.html``, ``contenders.csv``, ``differences.csv``, ``configuration.csv``, ``runs.csv`` and plots.

    The page depends on the result files and the command alone: the same ones give the same bytes.

    Args:
        comparison: What to write.
        out: The folder, made where it is missing.
        command: What a person types to make it again.

    Returns:
        The page.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        for name, frame in frames(comparison).items():
            frame.to_csv(out / f"{name}.csv", index=False)
        figures, not_drawn = _draw(comparison, out / "plots")
        page = out / "compare.html"
        page.write_text(_page(comparison, figures, not_drawn, command), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from error
    return page


def _draw(comparison: Comparison, home: Path) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    results = as_sweep(comparison.contenders)
    figures, not_drawn = [], []
    for name, (title, draw, options) in _FIGURES.items():
        try:
            figure, caption = draw(results, options)
        except CannotDraw as reason:
            not_drawn.append((title, str(reason)))
            for old in home.glob(f"{name}.*"):
                old.unlink()
            continue
        _, svg = style.save(figure, home / name)
        shown = ("val_perplexity", options["x"]) if "x" in options else ("val_loss",)
        reasons = dict.fromkeys(reason for (_, column), reason in comparison.unfair.items() if column in shown)
        for why in reasons:
            caption += f" Not all comparable: {why}."
        figures.append({"title": title, "caption": caption, "source": data_uri(svg)})
    return figures, not_drawn


def _page(comparison: Comparison, figures: list[dict[str, str]], not_drawn: list[tuple[str, str]], command: str) -> str:
    first, *others = (contender.name for contender in comparison.contenders)
    question = f"{first} against {listing(others)}" if len(others) < 4 else f"{first} against {len(others)} others"
    return render(
        "compare.html.j2",
        name="Comparison",
        question=question,
        answer=answer(comparison),
        warnings=[*comparison.warnings, *comparison.notes],
        results=table_html(results_table(comparison), "Results"),
        differences=table_html(differences_table(comparison), "Differences"),
        configuration=table_html(configuration_table(comparison), "Configuration"),
        figures=figures,
        not_drawn=not_drawn,
        facts=_facts(comparison),
        command=command,
        commands=[
            (run.folder, run.command or "not recorded") for contender in comparison.contenders for run in contender.runs
        ],
    )


def answer(comparison: Comparison) -> list[str]:
    """The perplexities, and each contender against the first, in sentences; many contenders are summed up."""
    found = [(e, c.name) for c in comparison.contenders if (e := c.estimate("val_perplexity"))]
    if not found:
        return ["No run has completed, so there is no answer yet."]
    levels = [f"{plus_minus(e)} for {name} ({plural(e.n, 'seed')})" for e, name in found]
    many = len(comparison.contenders) > _MOST_SENTENCES
    if many:
        order = sorted(range(len(found)), key=lambda i: found[i][0].mean)
        known = f"between {levels[order[0]]} and {levels[order[-1]]}"
    else:
        known = listing(levels)
    items = [item for item in against_first(comparison) if item.column == "val_perplexity"]
    first = comparison.contenders[0].name
    against = _summed_up(comparison, items, first) if many else _each(comparison, items, first)
    return [sentence([f"validation perplexity, mean ± 95 % interval, is {known}"]), *against]


def _each(comparison: Comparison, items: list[Against], first: str) -> list[str]:
    said = []
    for item in items:
        if reason := comparison.unfair.get((item.name, item.column)):
            text = f"{item.name} and {first} are not comparable: {reason}"
        else:
            text = compare(item.difference, item.name, first, paired=item.how == "paired")
        said.append(sentence([f"in perplexity, {text}"]))
    return said


def _summed_up(comparison: Comparison, items: list[Against], first: str) -> list[str]:
    groups: dict[str, list[str]] = {}
    for item in items:
        d = item.difference
        if d is None or (item.name, item.column) in comparison.unfair:
            kind = "not comparable with it"
        elif d.low is None:
            kind = "in one seed, too few for a test"
        elif not d.found:
            kind = "without a difference found, which does not show that there is none"
        else:
            kind = "above it" if d.value > 0 else "below it"
        groups.setdefault(kind, []).append(item.name)
    said = "; ".join(f"{kind}: {', '.join(f'“{name}”' for name in names)}" for kind, names in groups.items())
    return [sentence([f"against “{first}”, by 95 % intervals of differences: {said}"])]


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    runs = [run for contender in comparison.contenders for run in contender.runs]

    def every(part: str, key: str) -> str:
        found = dict.fromkeys(str((run.result.get(part) or {}).get(key, "unknown")) for run in runs)
        return "; ".join(found)

    tokens = [run.metrics["tokens"] for run in runs if run.metrics.get("tokens")]
    span = dict.fromkeys(number(value * 1e-6) for value in (min(tokens), max(tokens))) if tokens else {}
    versions = [(run.result.get("environment") or {}).get("versions") or {} for run in runs]
    torch = dict.fromkeys(str(version.get("torch", "unknown")) for version in versions)
    return [
        ("Runs", ", ".join(f"{c.name}: seeds {_seeds(c)}" for c in comparison.contenders)),
        ("Training", f"{' to '.join(span)} million tokens a run" if span else "unknown"),
        ("Data", f"{every('data', 'source')} ({every('data', 'fingerprint')})"),
        ("Tokenizer", every("data", "tokenizer")),
        ("Hardware", every("environment", "hardware")),
        ("Precision", every("environment", "precision")),
        ("Backend", every("backend", "chosen")),
        ("torch", "; ".join(torch)),
    ]


def _seeds(contender: Any) -> str:
    return listing([str(run.result["seed"]) for run in contender.runs])


def frames(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """The tables as numbers: ``contenders``, ``differences``, ``configuration``, ``runs``."""
    contenders, runs = [], []
    for contender in comparison.contenders:
        row: dict[str, Any] = {"contender": contender.name}
        for column in comparison.columns:
            if found := contender.estimate(column):
                row |= {column: found.mean, f"{column}_half_width": found.half_width, f"{column}_seeds": found.n}
        contenders.append(row)
        for run in contender.runs:
            measured = {column: run.metrics.get(column) for column in comparison.columns}
            runs.append(
                {
                    "contender": contender.name,
                    "seed": run.result["seed"],
                    "state": run.result["state"],
                    **measured,
                    "run": str(run.folder),
                }
            )
    differences = [
        {
            "contender": item.name,
            "against": comparison.contenders[0].name,
            "metric": item.column,
            "difference": d.value,
            "low": d.low,
            "high": d.high,
            "unit": d.unit,
            "p": d.p,
            "how": item.how,
            "seeds": item.seeds[0],
            "seeds_against": item.seeds[1],
            "comparable": comparison.unfair.get((item.name, item.column), "yes"),
        }
        for item in against_first(comparison)
        if (d := item.difference)
    ]
    table = configuration_table(comparison)
    return {
        "contenders": pd.DataFrame(contenders),
        "differences": pd.DataFrame(differences),
        "configuration": pd.DataFrame([list(row) for row in table.rows], columns=list(table.columns)),
        "runs": pd.DataFrame(runs),
    }
