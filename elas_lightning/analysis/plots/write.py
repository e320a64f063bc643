"""Draw what ``summary.json`` asks for, and write the pictures with their sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.load import SweepResults, results_of
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import lower_first, name_of
from elas_lightning.analysis.plots.against import lr_curve, metric_by
from elas_lightning.analysis.plots.base import CannotDraw, metric_in
from elas_lightning.analysis.plots.curves import curves
from elas_lightning.analysis.plots.differences import differences
from elas_lightning.analysis.plots.dots import bars
from elas_lightning.analysis.plots.overview import heatmap, importance
from elas_lightning.analysis.plots.parallel import parallel
from elas_lightning.analysis.plots.pareto import pareto
from elas_lightning.analysis.plots.telemetry import telemetry
from elas_lightning.errors import UserError

Draw = Callable[[SweepResults, Mapping[str, Any]], tuple[Figure, str]]

KINDS: dict[str, Draw] = {
    "metric_by": metric_by,
    "bars": bars,
    "differences": differences,
    "curves": curves,
    "heatmap": heatmap,
    "lr_curve": lr_curve,
    "parallel": parallel,
    "importance": importance,
    "telemetry": telemetry,
    "pareto": pareto,
}
_NAMING = ("x", "y", "series", "style", "group", "metric", "value", "site")


def write_plots(sweep: str | Path | SweepResults) -> list[Path]:
    """Draw every plot that the sweep's ``summary.json`` lists.

    Writes ``plots/<kind>_<key>.png`` and ``.svg`` and ``plots/captions.json``:
    ``{"figures": [{name, kind, options, title, caption}], "not_drawn": [{kind, options, title, reason}]}``.
    Pictures of an earlier call that are no longer asked for are removed, so that the directory never mixes
    two states of a sweep.

    Args:
        sweep: ``runs/<name>``, or what ``load_sweep`` has read there.

    Returns:
        The written files, ``captions.json`` last.

    Raises:
        UserError: if the results cannot be read or a plot is asked for wrongly (an unknown kind, parameter,
            metric or value). A plot that merely lacks runs is listed under ``not_drawn`` instead.
    """
    results = results_of(sweep)
    home = results.folder / "plots"
    home.mkdir(exist_ok=True)
    written: list[Path] = []
    figures: list[dict[str, Any]] = []
    not_drawn: list[dict[str, Any]] = []
    for options in results.summary.get("plots") or []:
        kind = options.get("kind")
        if kind not in KINDS:
            raise UserError(f"plots: kind {kind!r} is unknown; allowed: {', '.join(KINDS)}.")
        entry = {
            "kind": kind,
            "options": {k: v for k, v in options.items() if k != "kind"},
            "title": _title(results, options),
        }
        try:
            figure, caption = KINDS[kind](results, options)
        except CannotDraw as reason:
            not_drawn.append({**entry, "reason": str(reason)})
            continue
        name = _unique(_name(options), {figure["name"] for figure in figures})
        written += style.save(figure, home / name)
        figures.append({"name": name, **entry, "caption": caption})
    captions = home / "captions.json"
    captions.write_text(
        json.dumps({"figures": figures, "not_drawn": not_drawn}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for old in home.iterdir():
        if old.suffix in {".png", ".svg"} and old not in written:
            old.unlink()
    return [*written, captions]


def _name(options: Mapping[str, Any]) -> str:
    parts = [str(options[key]) for key in _NAMING if options.get(key)]
    parts += [f"{key}_{value}" for key, value in (options.get("filter") or {}).items()]
    return f"{options['kind']}_{re.sub(r'[^A-Za-z0-9]+', '_', '_'.join(parts)).strip('_') or 'all'}"


def _unique(name: str, taken: set[str]) -> str:
    count = 2
    candidate = name
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate


def _title(results: SweepResults, options: Mapping[str, Any]) -> str:
    metric = metric_in(results, options).noun

    def label(key: str) -> str:
        name = str(options.get(key, "lr" if key == "x" else ""))
        known = {parameter.name: parameter.label for parameter in results.parameters}
        return lower_first(known.get(name, name.replace("_", " ")))

    match options["kind"]:
        case "parallel":
            text = "The search at a glance"
        case "importance":
            text = "Which parameter matters"
        case "curves":
            text = "Loss during training"
        case "differences":
            text = f"differences in {metric} by {label('x')}"
        case "telemetry":
            text = f"{str(options.get('value', '')).replace('_', ' ').capitalize()} by layer during training"
        case "heatmap":
            text = f"{metric} by {label('x')} and {label('y')}"
        case "pareto":
            text = f"{metric} against {metric_of(str(options.get('x', 'flops_per_token'))).noun}"
        case _:
            split = next((key for key in ("series", "group") if options.get(key)), None)
            text = f"{metric} by {label('x')}" + (f" and {label(split)}" if split else "")
    conditions = ", ".join(f"{key} {name_of(key, value)}" for key, value in (options.get("filter") or {}).items())
    return text[:1].upper() + text[1:] + (f" ({conditions})" if conditions else "")
