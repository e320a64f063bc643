"""What a sweep leaves for the analysis: ``trials.csv`` and ``summary.json``, rewritten after every run."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elas_lightning.files import write_whole
from elas_lightning.result import RunResult
from elas_lightning.sweep.plan import Plan, PlannedRun
from elas_lightning.sweep.spec import Dimension
from elas_lightning.trials_table import METRICS, STATES, columns


class Outcome:
    """Collects a sweep's runs and writes its two files.

    Args:
        plan: The sweep.
        command: What a person types to run it again.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self.plan = plan
        self.command = command
        self._rows: dict[str, dict[str, Any]] = {}
        self._last: RunResult | None = None

    def add(self, trial: int, planned: PlannedRun, result: RunResult) -> None:
        """Take in a run; one that is run again replaces its earlier row."""
        measured = {field: result.metrics.get(field) for field in METRICS}
        place = {"trial": trial, "seed": planned.seed, "state": result.state}
        rest = {"run": result.run, "reason": result.reason}
        self._rows[result.run] = {**place, **planned.values, **measured, **rest}
        if result.state == "complete" or self._last is None:
            self._last = result

    @property
    def counts(self) -> dict[str, int]:
        """Runs by how they ended."""
        found = Counter(row["state"] for row in self._rows.values())
        return {state: found[state] for state in STATES}

    def write(self, importances: dict[str, float] | None = None, left_out: int = 0) -> None:
        """Write both files, each whole or not at all.

        Args:
            importances: Of a search's parameters.
            left_out: Runs of the plan that nobody is going to make.
        """
        folder, spec = self.plan.folder, self.plan.spec
        rows = sorted(self._rows.values(), key=lambda row: (row["trial"], row["seed"]))
        _write_csv(folder / "trials.csv", columns(d.name for d in spec.search), rows)
        environment = self._last.environment if self._last else {}
        summary = {
            "name": spec.name,
            "question": spec.question,
            "command": self.command,
            "size": self.plan.size,
            "data": self._last.data if self._last else {},
            "environment": {k: v for k, v in environment.items() if k != "command"},
            "backend": self._last.backend if self._last else {},
            "sampler": spec.sampler,
            "pruner": spec.pruner,
            "objective": spec.objectives[0].name,
            "objectives": [objective.name for objective in spec.objectives],
            "search": {dimension.name: self._search(dimension) for dimension in spec.search},
            "seeds": list(spec.seeds),
            "plots": [dict(plot) for plot in spec.plots],
            "twins": dict(spec.twins),
            "runs": {"planned": self.plan.planned_runs - left_out, **self.counts},
            "seconds": sum(row["seconds"] or 0.0 for row in rows),
            "importances": importances,
        }
        write_whole(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))

    def _search(self, dimension: Dimension) -> dict[str, Any]:
        values = self.plan.values(dimension)
        keys, label = list(dimension.keys), dimension.label or dimension.name.replace("_", " ")
        if dimension.is_range:
            low, high = values
            return {"kind": "range", "low": low, "high": high, "log": dimension.log, "label": label, "keys": keys}
        return {"kind": "choices", "values": values, "label": label, "keys": keys}


def _write_csv(path: Path, fields: list[str], rows: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
