"""One run as its files tell it: for notebooks, and for comparisons."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from elas_lightning.analysis.load import read_json, read_numbers
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.wording import number
from elas_lightning.errors import UserError
from elas_lightning.file_fields import RESULT_FIELDS

_NEEDED = ("run", "state", "seed", "config", "metrics")
_SHOWN = (
    "val_perplexity",
    "val_loss",
    "val_bits_per_byte",
    "tokens",
    "tokens_per_second",
    "parameters",
    "flops_per_token",
    "peak_memory_bytes",
)


@dataclass(frozen=True, repr=False)
class RunResults:
    """A run on disk.

    Args:
        folder: The run's directory.
        result: ``result.json``.
        curve: ``curve.csv``: one row a window of training steps or a validation; empty where there is no file.
        telemetry: ``telemetry.csv``: sparsity by step, layer and site; empty where there is no file.
    """

    folder: Path
    result: dict[str, Any]
    curve: pd.DataFrame
    telemetry: pd.DataFrame

    @property
    def name(self) -> str:
        """The run's name, that of its directory when it was made."""
        return str(self.result["run"])

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration, every default filled in."""
        config: dict[str, Any] = self.result["config"]
        return config

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured; ``None`` where something was not."""
        metrics: dict[str, Any] = self.result["metrics"]
        return metrics

    @property
    def command(self) -> str | None:
        """What a person types to make the run again."""
        return (self.result.get("environment") or {}).get("command")

    def __repr__(self) -> str:
        perplexity = self.metrics.get("val_perplexity")
        found = f", perplexity {number(perplexity, 4)}" if perplexity is not None else ""
        return f"RunResults({str(self.folder)!r}: {self.result['state']}, seed {self.result['seed']}{found})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures with their units, and where they come from."""
        environment = self.result.get("environment") or {}
        rows = [("State", f"{self.result['state']}" + (f": {r}" if (r := self.result.get("reason")) else ""))]
        for column in _SHOWN:
            if (value := self.metrics.get(column)) is not None:
                metric = metric_of(column)
                rows.append((metric.label, number(value * metric.scale, 4)))
        rows += [("Seed", str(self.result["seed"])), ("Hardware", str(environment.get("hardware", "unknown")))]
        if self.command:
            rows.append(("Command", self.command))
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in rows
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{cells}</table>"


def load_run(folder: str | Path) -> RunResults:
    """Read the directory of a run that has ended:

        run = load_run("runs/fit/000")
        run.curve.plot(x="tokens", y="train_loss")

    Args:
        folder: What ``elas fit`` printed behind ``results:``, or a folder under ``runs/`` of a sweep.

    Returns:
        Its result, loss curve and telemetry.

    Raises:
        UserError: There is no result, or a file cannot be read.
    """
    folder = Path(folder)
    advice = "give the directory of a run that has ended, which `elas fit` printed behind `results:`"
    result = read_json(folder / "result.json", advice, RESULT_FIELDS)
    if absent := [key for key in _NEEDED if key not in result]:
        raise UserError(f"{folder / 'result.json'} has no {', '.join(absent)}: it is no result of a run")
    return RunResults(folder, result, _table(folder / "curve.csv"), _table(folder / "telemetry.csv"))


def _table(path: Path) -> pd.DataFrame:
    return read_numbers(path, "run it again") if path.is_file() else pd.DataFrame()
