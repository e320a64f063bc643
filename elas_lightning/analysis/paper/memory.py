"""The bytes of a training step as the runs' result files account for them, method by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.paper.load import choices
from elas_lightning.analysis.paper.table import methods
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import number

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "total")


def accounts(results: SweepResults) -> dict[str, Mapping[str, Any]]:
    """The account of each method, from one of its runs: it is worked out from the configuration, not measured."""
    _, points = methods(results)
    found = {}
    for method, point in points.items():
        for run in point.runs:
            account = ((results.results.get(run) or {}).get("metrics") or {}).get("account")
            if isinstance(account, Mapping):
                found[method] = account
                break
    return found


def memory_table(results: SweepResults) -> Table | None:
    """Bytes by what they are for; None where no result file has an account."""
    found = accounts(results)
    if not found:
        return None
    names = [part for part in _PARTS if any(part in account for account in found.values())]
    rows = tuple(
        (method, *(_megabytes(found.get(method, {}).get(part)) for part in names))
        for method in choices(results, results.parameters[0].name)
    )
    columns = ("Method", *(f"{name.capitalize()} (MB)" for name in names))
    caption = (
        "Bytes of one training step at the runs' own micro-batch, from the configuration alone; a blank row has no "
        "run with "
        "an account. What a device really allocated is the peak memory of the table of methods."
    )
    return Table(caption, columns, rows, 1)


def _megabytes(value: Any) -> str:
    return number(float(value) * 1e-6) if isinstance(value, int | float) else ""
