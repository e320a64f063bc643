"""Read what a composite sweep left: its parts, and the records of speed and of downstream tasks beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from elas_lightning.analysis.load import SweepResults, load_sweep, planned_seeds, read_json
from elas_lightning.analysis.parameters import level_name
from elas_lightning.file_fields import SUMMARY_FIELDS

# The method that this suite is about, as its sweeps name it.
OURS = "ELAS"
# Where `elas eval --json` puts what the document is to show.
EVALUATIONS = "evaluations"
_ADVICE = "run the command again that wrote it"


@dataclass(frozen=True)
class Paper:
    """A composite as its files tell it.

    Args:
        folder: ``runs/<name>``.
        summary: its ``summary.json``.
        parts: the sweeps whose files are there, by name, in the composite's order.
        absent: the other parts, each with the reason.
        records: the benchmarks' files, also in folders of devices, by their path below ``benchmarks/results``.
        evaluations: results of ``elas eval`` by file name.
    """

    folder: Path
    summary: dict[str, Any]
    parts: dict[str, SweepResults]
    absent: dict[str, str]
    records: dict[str, dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]

    @cached_property
    def table(self) -> SweepResults | None:
        """The part that compares the methods."""
        return self.parts[self.table_name] if self.table_name else None

    @cached_property
    def table_name(self) -> str | None:
        """The name of that part: the first that names a twin of ELAS."""
        return next((name for name, part in self.parts.items() if OURS in (part.summary.get("twins") or {})), None)

    def captions(self, part: str) -> list[str]:
        """What the figures of a part show, as they were drawn last."""
        drawn = self.parts[part].folder / "plots" / "captions.json"
        return [figure["caption"] for figure in read_json(drawn, _ADVICE)["figures"]] if drawn.is_file() else []

    @property
    def trials(self) -> pd.DataFrame:
        """The runs of all parts, in the columns that every sweep has."""
        frames = [part.trials.drop(columns=part.names).assign(part=name) for name, part in self.parts.items()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    @property
    def results(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every result file, with the names of its part and run."""
        for name, part in self.parts.items():
            for run, result in part.results.items():
                yield name, run, result

    @property
    def hardware(self) -> list[str]:
        """What the runs ran on, each once."""
        found = ((result.get("environment") or {}).get("hardware") for *_, result in self.results)
        return sorted({str(name) for name in found if name})


def is_paper(folder: Path) -> bool:
    """Whether a folder of results is a composite's."""
    path = folder / "summary.json"
    return path.is_file() and "parts" in read_json(path, _ADVICE)


def load_paper(folder: Path, benchmarks: Path | None = None) -> Paper:
    """Read ``runs/<name>`` and the folders of its parts.

    Args:
        folder: the composite's folder; its parts lie beside it.
        benchmarks: the folder of the benchmarks' records.

    Raises:
        UserError: if a file cannot be read. A part without files is not an error but missing.
    """
    summary = read_json(folder / "summary.json", _ADVICE, SUMMARY_FIELDS)
    parts: dict[str, SweepResults] = {}
    absent: dict[str, str] = {}
    for part in summary["parts"]:
        home = folder.parent / part["folder"]
        if (home / "summary.json").is_file():
            parts[part["name"]] = load_sweep(home)
        else:
            absent[part["name"]] = f"{home} holds no results"
    return Paper(
        folder=folder,
        summary=summary,
        parts=parts,
        absent=absent,
        records=_objects(benchmarks, "**/*.json") if benchmarks else {},
        evaluations=_objects(folder / EVALUATIONS, "*.json"),
    )


def load_stored(folder: Path, order: Sequence[str]) -> Paper:
    """Sweeps that lie in one folder, as a document without a command, records or tasks.

    Args:
        folder: each of its folders with a ``summary.json`` is a sweep.
        order: names of those that come first.

    Raises:
        UserError: if a file cannot be read.
    """
    names = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return Paper(folder, {}, {name: load_sweep(folder / name) for name in names}, {}, {}, {})


def method_names(results: SweepResults) -> list[str]:
    """The choices of the first parameter, run or not, as tables name them."""
    methods = results.parameters[0]
    return [level_name(methods, level) for level in methods.levels]


def seeds_of(results: SweepResults) -> int:
    """How many seeds a part plans."""
    return len(planned_seeds(results.summary))


def _objects(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    return {str(path.relative_to(folder)): read_json(path, _ADVICE) for path in sorted(folder.glob(pattern))}
