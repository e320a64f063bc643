"""``runs/paper/report.html``: the whole document in one file, from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elas_lightning.analysis import style
from elas_lightning.analysis.answer import answer, facts, losses
from elas_lightning.analysis.benchmark_summary import Line, summary_figure, summary_table
from elas_lightning.analysis.load import planned_runs
from elas_lightning.analysis.page import data_uri, drawn, render, table_html
from elas_lightning.analysis.paper.cost import cost_figure
from elas_lightning.analysis.paper.forest import forest
from elas_lightning.analysis.paper.load import Paper, load_paper
from elas_lightning.analysis.paper.memory import memory_table, sizes_table
from elas_lightning.analysis.paper.protocol import measured, protocol_figure, protocol_sentences, protocol_table
from elas_lightning.analysis.paper.published import published_tables
from elas_lightning.analysis.paper.questions import questions
from elas_lightning.analysis.paper.scaling import scaling_figure, scaling_sentences, scaling_series, scaling_table
from elas_lightning.analysis.paper.speed import by_device, speed_answers
from elas_lightning.analysis.paper.table import against_twins, methods_table
from elas_lightning.analysis.paper.tasks import tasks_table
from elas_lightning.analysis.paper.verdicts import statistics_note, verdicts
from elas_lightning.analysis.plots import write_plots
from elas_lightning.analysis.report import loss_table, write_report
from elas_lightning.analysis.tables import comparison_table, results_table


def write_paper_plots(folder: str | Path) -> list[Path]:
    """Redraw the plots of every part, and the document's own.

    Args:
        folder: the composite's folder.

    Returns:
        The written files.

    Raises:
        UserError: if results cannot be read.
    """
    paper = load_paper(Path(folder))
    written = [path for results in paper.parts.values() for path in write_plots(results)]
    return [*written, *(path for paths, _ in _own_figures(paper).values() for path in paths)]


def write_paper_report(folder: str | Path, benchmarks: Path | None = None) -> Path:
    """Redo the report of every part and write the document around them.

    Args:
        folder: the composite's folder.
        benchmarks: the folder of the benchmarks' records; None for a document without speed.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: if results cannot be read.
    """
    paper = load_paper(Path(folder), benchmarks)
    for results in paper.parts.values():
        write_report(results)
    own = _own_figures(paper)
    series, runs = scaling_series(paper), measured(paper)
    page = render(
        "paper/paper.html.j2",
        name=paper.summary["name"],
        question=paper.summary["question"],
        command=paper.summary["command"],
        answer=verdicts(paper),
        cost=_figure(own, "cost"),
        missing=_missing(paper),
        questions=questions(paper),
        methods=table_html(methods_table(paper.table) if paper.table else None, "Table of methods"),
        equivalence=_figure(own, "equivalence"),
        published=_published(paper.table_name or "paper_table"),
        parts=[_part(paper, name) for name in paper.parts],
        scaling=scaling_sentences(series),
        scaling_table=table_html(scaling_table(series), "Loss against size"),
        scaling_figure=_figure(own, "scaling"),
        protocol=protocol_sentences(runs),
        protocol_table=table_html(protocol_table(runs) if runs else None, "Evaluation protocols"),
        protocol_figure=_figure(own, "protocol"),
        speed=[sentence for _, sentence in speed_answers(paper)],
        speed_devices=[
            {"figure": _figure(own, name), "table": table_html(summary_table(found), f"{device}: speed side by side")}
            for device, (name, found) in _devices(paper).items()
        ],
        speed_published=_published("speed"),
        memory_published=_published("memory"),
        sizes_table=table_html(sizes_table(paper), "Memory at the paper's sizes"),
        memory_table=table_html(memory_table(paper.table) if paper.table else None, "Memory by part"),
        tasks_table=table_html(tasks_table(paper), "Downstream tasks"),
        losses=table_html(loss_table("Part", _losses(paper)), "Divergences and failures"),
        statistics=statistics_note(),
        facts=facts(paper.table) if paper.table else [],
    )
    path = paper.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


_Own = dict[str, tuple[list[Path], str]]


def _own_figures(paper: Paper) -> _Own:
    """Draw and write the figures that belong to no part: files and caption by name."""
    home = paper.folder / "plots"
    home.mkdir(exist_ok=True)
    for old in home.iterdir():
        if old.suffix in {".png", ".svg"}:
            old.unlink()
    series, runs = scaling_series(paper), measured(paper)
    by_number = "Lines are the arithmetic of dividing by N + 1; points are runs."
    made: dict[str, tuple[Figure, str] | None] = {
        "cost": cost_figure(paper),
        "equivalence": forest(against_twins(paper.table)) if paper.table else None,
        "protocol": (protocol_figure(runs), by_number),
    }
    for device, (name, found) in _devices(paper).items():
        if sum(len(line.best) for line in found) > 1:  # one bar is a number
            made[name] = summary_figure(found), f"{device}: ELAS's fastest way beside its dense twin."
    figure = scaling_figure(series)
    if figure is not None:
        made["scaling"] = (
            figure,
            "Points are means with 95 % intervals over seeds; curves, where there are any, are fitted to them, dotted "
            "beyond the largest size and shaded where 95 % of the resampled seeds lie.",
        )
    return {name: (style.save(found[0], home / name), found[1]) for name, found in made.items() if found is not None}


def _devices(paper: Paper) -> dict[str, tuple[str, list[Line]]]:
    """What was measured on each device, with the name of its figure."""
    return {device: (f"speed_{i}", found) for i, (device, found) in enumerate(by_device(paper).items(), start=1)}


def _figure(own: _Own, name: str) -> dict[str, str] | None:
    if name not in own:
        return None
    (_, svg), caption = own[name]
    return {"source": data_uri(svg), "caption": caption}


def _part(paper: Paper, name: str) -> dict[str, Any]:
    """A part's section, from the figures of its own report."""
    results = paper.parts[name]
    figures, not_drawn = drawn(results.folder)
    return {
        "name": name,
        "question": results.summary.get("question") or name,
        "answer": answer(results, figures),
        "figures": figures,
        "not_drawn": not_drawn,
        "published": [] if results is paper.table else _published(name),
        "results": table_html(results_table(results) if len(results.trials) else None, f"{name}: results by setting"),
        "comparisons": table_html(comparison_table(results), f"{name}: comparisons"),
        "missing": results.missing,
        "command": results.summary.get("command"),
    }


def _published(section: str) -> list[tuple[str, Any]]:
    return [(title, table_html(table, title)) for title, table in published_tables(section)]


def _losses(paper: Paper) -> list[tuple[str, str, str, str, str]]:
    return [
        (name, setting, seed, state, reason)
        for name, results in paper.parts.items()
        for _, setting, seed, state, reason in losses(results)
    ]


def _missing(paper: Paper) -> list[str]:
    said = [f"{name}: {reason}." for name, reason in paper.absent.items()]
    for name, results in paper.parts.items():
        planned = planned_runs(results.summary)
        if planned > len(results.trials):
            said.append(f"{name}: {planned - len(results.trials)} of {planned} runs.")
    return said
