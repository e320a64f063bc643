"""One self-contained page about a sweep: opens from disk, asks the network for nothing, needs no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elas_lightning.analysis.answer import answer, facts, limits, losses
from elas_lightning.analysis.front import front_table
from elas_lightning.analysis.load import SweepResults, results_of
from elas_lightning.analysis.page import drawn, render, table_html
from elas_lightning.analysis.plots import write_plots
from elas_lightning.analysis.tables import Table, comparison_table, results_table, write_tables


def write_report(sweep: str | Path | SweepResults) -> Path:
    """Redo plots and tables of a sweep and write ``report.html`` around them.

    The page depends on the result files alone (not on the time or the machine of the call), so the same
    results give the same bytes.

    Args:
        sweep: ``runs/<name>``, or what ``load_sweep`` has read there.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: if the results cannot be read or a plot is asked for wrongly.
    """
    results = results_of(sweep)
    write_plots(results)
    write_tables(results)
    figures, not_drawn = drawn(results.folder)
    summary = results.summary
    lost = losses(results)
    nothing_beats = front_table(results)
    page = render(
        "report.html.j2",
        name=summary["name"],
        question=summary.get("question") or f"Sweep {summary['name']}",
        answer=answer(results, figures),
        figures=figures,
        not_drawn=not_drawn,
        results=table_html(results_table(results), "Results by setting"),
        front=table_html(nothing_beats, "The front") if nothing_beats else None,
        comparisons=table_html(comparison_table(results), "Comparisons paired by seed"),
        facts=facts(results),
        limits=limits(results),
        missing=results.missing,
        losses=table_html(_loss_table(lost), "Divergences and failures") if lost else None,
        command=summary.get("command"),
        commands=_commands(results.results),
    )
    path = results.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _loss_table(lost: list[tuple[str, str, str, str, str]]) -> Table:
    caption = "Runs without a result; they have no part in any mean."
    return Table(caption, ("Run", "Setting", "Seed", "State", "Reason"), tuple(lost), 5)


def _commands(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The command of each run, for those who want to repeat a single one."""
    found = [(run, (result.get("environment") or {}).get("command")) for run, result in results.items()]
    return [(run, str(command)) for run, command in found if command]
