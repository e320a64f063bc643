"""Downstream tasks: what ``elas eval`` found, as far as its files lie in the document's folder."""

from __future__ import annotations

from elas_lightning.analysis.paper.load import Paper
from elas_lightning.analysis.tables import Table


def tasks_table(paper: Paper) -> Table | None:
    """One row a task and metric; None where nothing was measured."""
    rows = []
    for name, record in paper.evaluations.items():
        for sparsity, found in (record.get("tasks") or {}).items():
            for task, values in (found.get("results") or {}).items():
                rows += [
                    (name, sparsity, task, key.split(",")[0], f"{value:.4f}", _error(values, key))
                    for key, value in sorted(values.items())
                    if isinstance(value, int | float) and "," in key and "_stderr" not in key
                ]
    if not rows:
        return None
    columns = ("File", "2:4", "Task", "Metric", "Value", "Standard error")
    caption = "By lm-eval on the model's own code. The standard error is over examples; it knows nothing of seeds."
    return Table(caption, columns, tuple(rows), 4)


def _error(values: dict[str, object], key: str) -> str:
    metric, _, chain = key.partition(",")
    error = values.get(f"{metric}_stderr,{chain}")
    return f"{error:.4f}" if isinstance(error, float) else ""
