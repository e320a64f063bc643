"""Results as tables: every point with its spread, and every seed-paired comparison with Holm's correction."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elas_lightning.analysis.load import SweepResults, load_sweep
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import level_name, side_name
from elas_lightning.analysis.points import Point, contrast, describe, difference, gather
from elas_lightning.analysis.statistics import Difference, holm
from elas_lightning.analysis.wording import interval, number, plus_minus, signed

_NOT_MEASURED = "not measured"
# Seeds of one point share the model, so these are the same for each; speed is not.
_AMOUNTS = ("parameters", "flops_per_token", "peak_memory_bytes")
_ALPHA = 0.05


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Args:
        caption: what the table shows, one sentence.
        columns: headings.
        rows: as many cells as headings.
        names: how many columns at the left are names; the others are numbers and stand to the right.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int

    def markdown(self) -> str:
        """The table in GitHub's Markdown, its caption below."""
        rule = ["---" if i < self.names else "---:" for i in range(len(self.columns))]
        cells = [self.columns, tuple(rule), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells]
        return "\n".join([*lines, "", self.caption, ""])

    def html(self) -> str:
        """The table as an HTML ``table`` with scoped headings; every cell is escaped."""
        head = "".join(f'<th scope="col"{self._side(i)}>{html.escape(c)}</th>' for i, c in enumerate(self.columns))
        body = []
        for row in self.rows:
            cells = [
                f'<th scope="row">{html.escape(cell)}</th>' if i == 0 else f"<td{self._side(i)}>{html.escape(cell)}</td>"
                for i, cell in enumerate(row)
            ]
            body.append(f"<tr>{''.join(cells)}</tr>")
        return (
            f"<table>\n<caption>{html.escape(self.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
            + "\n".join(body)
            + "\n</tbody>\n</table>"
        )

    def _side(self, i: int) -> str:
        return "" if i < self.names else ' class="number"'


def results_table(results: SweepResults) -> Table:
    """One row a point of the search, best means not sorted to the top: the order is that of the sweep's file."""
    objective = metric_of(results.objective)
    columns = [*(p.label for p in results.parameters), objective.label, "Bits per byte", "Seeds", "Lost runs",
               "Tokens/s", "Parameters (M)", "Training MFLOPs per token", "Peak memory (MB)"]
    speed = {p.runs: p for p in gather(results, results.names, "tokens_per_second")}
    bits = {p.runs: p for p in gather(results, results.names, "val_bits_per_byte")}
    rows = []
    for point in gather(results, results.names, objective.column):
        names = [level_name(results.parameter(name), level) for name, level in point.levels.items()]
        lost = [f"{count} {state}" for state, count in point.counts.items() if state != "complete" and count]
        rows.append((
            *names,
            _mean(point, objective.scale),
            _mean(bits[point.runs]),
            str(point.counts["complete"]),
            ", ".join(lost) or "0",
            _mean(speed[point.runs]),
            *(_amount(results, point, column) for column in _AMOUNTS),
        ))
    caption = (
        "Mean ± half of the 95 % t-interval over the complete seeds of each point; a point with one seed has no "
        "interval. Memory is the peak of the training process's device, where the device reports it."
    )
    return Table(caption, tuple(columns), tuple(rows), len(results.parameters))


def _mean(point: Point, scale: float = 1.0) -> str:
    return plus_minus(point.estimate, scale) if point.estimate else "none"


def _amount(results: SweepResults, point: Point, column: str) -> str:
    values = results.trials.loc[results.trials["run"].isin(point.runs), column].dropna()
    return number(float(values.max()) * 1e-6) if len(values) else _NOT_MEASURED


def comparisons(results: SweepResults) -> list[tuple[str, str, str, Difference | None]]:
    """Each level of the sweep's contrast against its baseline, at every combination of the other parameters.

    Points differ in nothing but the contrast here; nothing is picked as the best, so that p means what it says.

    Returns:
        ``(context, level, baseline, difference)``; empty when the sweep has no contrast.
    """
    found = contrast(results)
    if found is None:
        return []
    name, base = found
    parameter = results.parameter(name)
    others = [other for other in results.names if other != name]
    by_context: dict[tuple[object, ...], dict[str, Point]] = {}
    for point in gather(results, results.names, results.objective):
        context = tuple(point.levels[other] for other in others)
        by_context.setdefault(context, {})[side_name(parameter, point.levels[name])] = point
    rows = []
    for points in by_context.values():
        if base not in points:
            continue
        where = describe(results, {other: points[base].levels[other] for other in others})
        for level, point in points.items():
            if level != base:
                rows.append((where, level, base, difference(point, points[base], results.objective)))
    return rows


def comparison_table(results: SweepResults) -> Table | None:
    """The comparisons as a table; None when the sweep compares no two points that differ in its contrast alone."""
    found = comparisons(results)
    if not found:
        return None
    metric = metric_of(results.objective)
    adjusted = holm([d.p if d else None for *_, d in found])
    rows = []
    for (where, level, base, d), p in zip(found, adjusted, strict=True):
        if d is None:
            rows.append((where or "all runs", level, base, "no shared seed", "none", "0", "none", "none", "not comparable"))
            continue
        rows.append((
            where or "all runs", level, base, signed(d.value), interval(d), str(d.n), _p(d.p), _p(p), _verdict(d, p)
        ))
    unit = "%" if metric.difference == "%" else "nats"
    count = sum(p is not None for p in adjusted)
    caption = (
        f"Differences in {metric.noun}, paired by seed, with 95 % t-intervals of each comparison on its own. The "
        f"last p is corrected for all {count} comparisons of this table (Holm). “Not found” means that the "
        "interval includes zero: it bounds the difference and does not show that there is none."
    )
    columns = ("Where", "Level", "Against", f"Difference ({unit})", f"95 % interval ({unit})", "Seeds", "p", "p (Holm)",
               "Reading")
    return Table(caption, columns, tuple(rows), 3)


def _p(p: float | None) -> str:
    if p is None:
        return "none"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _verdict(d: Difference, adjusted: float | None) -> str:
    if adjusted is None:
        return "one seed: no test"
    if not d.found:
        return "not found"
    side = "above" if d.value > 0 else "below"
    return side if adjusted < _ALPHA else f"{side}, but not after correction"


def write_tables(folder: str | Path) -> list[Path]:
    """Write ``tables/results`` and ``tables/comparisons`` as Markdown and as HTML fragments.

    Args:
        folder: ``runs/<name>``.

    Returns:
        The written files.

    Raises:
        UserError: if the results cannot be read.
    """
    results = load_sweep(folder)
    home = results.folder / "tables"
    home.mkdir(exist_ok=True)
    written = []
    tables: Sequence[tuple[str, Table | None]] = [
        ("results", results_table(results)), ("comparisons", comparison_table(results))
    ]
    for name, table in tables:
        for suffix, text in ((".md", table and table.markdown()), (".html", table and table.html() + "\n")):
            path = home / f"{name}{suffix}"
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text, encoding="utf-8")
                written.append(path)
    return written
