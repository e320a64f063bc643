"""Results as tables: every point with its spread, and every seed-paired comparison with Holm's correction."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

from elas_lightning.analysis.comparisons import comparisons, twin_comparisons
from elas_lightning.analysis.equivalence import ALPHA
from elas_lightning.analysis.load import SweepResults, results_of
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import level_name
from elas_lightning.analysis.points import Point, amount, gather
from elas_lightning.analysis.statistics import Difference, holm
from elas_lightning.analysis.wording import decimals_of, interval, lost, number, plus_minus, signed

# Of all of a point's runs: its seeds share the model, and of their peaks of memory the highest is what has to fit.
_AMOUNTS = ("parameters", "flops_per_token", "peak_memory_bytes")
# What Markdown would take for markup in a name: emphasis, code, formulas, tags, entities, the table's own bars.
_MARKUP = re.compile(r"[\\`*|$]|<(?=[A-Za-z/!])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")


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
        lines = [
            "| " + " | ".join(_MARKUP.sub(r"\\\g<0>", cell).replace("\n", " ") for cell in row) + " |" for row in cells
        ]
        return "\n".join([*lines, "", self.caption, ""])

    def html(self, label: str = "Table") -> str:
        """The table in a box that scrolls sideways by itself, the caption below it; every cell is escaped.

        Args:
            label: what a screen reader calls the box.
        """
        head = "".join(f'<th scope="col"{self._side(i)}>{html.escape(c)}</th>' for i, c in enumerate(self.columns))
        body = []
        for row in self.rows:
            cells = [f"<td{self._side(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row)]
            cells[0] = f'<th scope="row">{html.escape(row[0])}</th>'
            body.append(f"<tr>{''.join(cells)}</tr>")
        rows = "\n".join(body)
        # The caption stands outside the box: inside it would be as wide as the table and scroll away with it.
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">\n<table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
            f'<p class="note">{html.escape(self.caption)}</p>'
        )

    def _side(self, i: int) -> str:
        return "" if i < self.names else ' class="number"'


def results_table(results: SweepResults) -> Table:
    """One row a point of the search, in the order of the sweep's file rather than by success."""
    objective = metric_of(results.objective)
    others = objective.column != "val_bits_per_byte"
    columns = [
        *(p.label for p in results.parameters),
        objective.label,
        *(["Bits per byte"] if others else []),
        "Seeds",
        "Lost runs",
        "Tokens/s",
        "Parameters (M)",
        "Training MFLOPs per token",
        "Peak memory (MB)",
    ]
    speed = {p.runs: p for p in gather(results, results.names, "tokens_per_second")}
    bits = {p.runs: p for p in gather(results, results.names, "val_bits_per_byte")}
    rows = []
    for point in gather(results, results.names, objective.column):
        names = [level_name(results.parameter(name), level) for name, level in point.levels.items()]
        rows.append(
            (
                *names,
                _mean(point, objective.scale),
                *([_mean(bits[point.runs])] if others else []),
                str(point.counts["complete"]),
                ", ".join(lost(point.counts)) or "0",
                _mean(speed[point.runs]),
                *(_millions(amount(results, point, column)) for column in _AMOUNTS),
            )
        )
    caption = (
        "Mean ± half of the 95 % t-interval over the complete seeds of each point; a point with one seed has "
        "no interval. Peak memory is the highest of a point's runs: what was allocated on a GPU, or the whole process "
        "on a CPU, whose interpreter and libraries it includes."
    )
    return Table(caption, tuple(columns), tuple(rows), len(results.parameters))


def _mean(point: Point, scale: float = 1.0) -> str:
    return plus_minus(point.estimate, scale) if point.estimate else "none"


def _millions(value: float | None) -> str:
    return "not measured" if value is None else number(value * 1e-6)


def comparison_table(results: SweepResults) -> Table | None:
    """The comparisons as a table, those with twins first; None when no two points differ in one parameter alone."""
    families = [family for family in (twin_comparisons(results), comparisons(results)) if family]
    if not families:
        return None
    metric = metric_of(results.objective)
    rows, tests = [], []
    for family in families:
        adjusted = holm([d.p if d else None for *_, d, _ in family])
        tests.append(sum(p is not None for p in adjusted))
        for (where, level, base, d, _), p in zip(family, adjusted, strict=True):
            cells = ("no shared seed", "none", "0", "none", "none", "not comparable")
            if d is not None:
                value = signed(d.value, decimals_of(d))
                cells = (value, interval(d), str(d.n), p_text(d.p), p_text(p), _verdict(d, p))
            rows.append((where or "all runs", level, base, *cells))
    unit = "%" if metric.difference == "%" else "nats"
    caption = f"Differences in {metric.noun}, paired by seed"
    if sum(tests):
        caption += (
            f", with 95 % t-intervals of each comparison on its own. The last p is corrected for {_counted(tests)} "
            "(Holm). “Not found” means that the interval includes zero: it bounds the difference and does not show "
            "that there is none"
        )
    caption += "."
    measured = (f"Difference ({unit})", f"95 % interval ({unit})", "Seeds", "p", "p (Holm)", "Reading")
    return Table(caption, ("Where", "Level", "Against", *measured), tuple(rows), 3)


def _counted(tests: list[int]) -> str:
    if len(tests) == 1:
        return f"the number of tests in this table, {tests[0]}"
    twins, others = tests
    return f"the number of tests, {twins} against twins (the first rows) and {others} others, each family by itself"


def p_text(p: float | None) -> str:
    """A p-value as a cell."""
    if p is None:
        return "none"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _verdict(d: Difference, adjusted: float | None) -> str:
    if adjusted is None:
        return "one seed: no test"
    if not d.found:
        return "not found"
    side = "above" if d.value > 0 else "below"
    return side if adjusted < ALPHA else f"{side}, but not after correction"


def write_tables(sweep: str | Path | SweepResults) -> list[Path]:
    """Write ``tables/results`` and ``tables/comparisons`` as Markdown and as HTML fragments.

    Args:
        sweep: ``runs/<name>``, or what ``load_sweep`` has read there.

    Returns:
        The written files.

    Raises:
        UserError: if the results cannot be read.
    """
    results = results_of(sweep)
    home = results.folder / "tables"
    home.mkdir(exist_ok=True)
    written = []
    for name, table in (("results", results_table(results)), ("comparisons", comparison_table(results))):
        for suffix in (".md", ".html"):
            path = home / f"{name}{suffix}"
            if table is None:
                path.unlink(missing_ok=True)
                continue
            path.write_text(table.markdown() if suffix == ".md" else table.html() + "\n", encoding="utf-8")
            written.append(path)
    return written
