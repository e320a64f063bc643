"""One self-contained page about a sweep: opens from disk, asks the network for nothing, needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    # for those who want to repeat a single one
    commands = [(run, (result.get("environment") or {}).get("command")) for run, result in results.results.items()]
    page = render(
        "report.html.j2",
        name=summary["name"],
        question=summary.get("question") or f"Sweep {summary['name']}",
        answer=answer(results, figures),
        figures=figures,
        not_drawn=not_drawn,
        results=table_html(results_table(results), "Results by setting"),
        front=table_html(front_table(results), "The front"),
        comparisons=table_html(comparison_table(results), "Comparisons paired by seed"),
        facts=facts(results),
        limits=limits(results),
        missing=results.missing,
        losses=table_html(loss_table("Run", losses(results)), "Divergences and failures"),
        command=summary.get("command"),
        commands=[(run, str(command)) for run, command in commands if command],
    )
    path = results.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def loss_table(where: str, lost: Sequence[tuple[str, str, str, str, str]]) -> Table | None:
    """The rows of ``losses`` under the heading of their first column; None without any."""
    caption = "Runs without a result; they have no part in any mean."
    return Table(caption, (where, "Setting", "Seed", "State", "Reason"), tuple(lost), 5) if lost else None
