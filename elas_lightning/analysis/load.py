"""Read the result files of a sweep, finished or not, into tables.

Everything the analysis knows comes from here, and here only from files, so that plots and reports can be
redone on a machine that has neither the model nor the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elas_lightning.analysis.parameters import (
    Parameter,
    level_name,
    make_parameter,
    name_of,
    parse_cell,
    phrase,
    to_level,
)
from elas_lightning.analysis.wording import plural
from elas_lightning.errors import UserError
from elas_lightning.file_fields import RESULT_FIELDS, SUMMARY_FIELDS, Fields, wrong_field
from elas_lightning.trials_table import METRICS, STATES

KEY_COLUMNS = ("trial", "seed", "state", "run")


@dataclass(frozen=True, repr=False)
class SweepResults:
    """A sweep as its files tell it.

    Args:
        folder: ``runs/<name>``.
        summary: ``summary.json``.
        parameters: the searched parameters, in the sweep's order.
        trials: one row a finished run; parameter columns hold levels (floats or names), metrics floats.
        curves: every row of every ``curve.csv`` with ``run``, ``seed``, ``state`` and the parameters joined; one
            that bears a name of the file's own (``lr``) as ``lr_searched``.
        telemetry: the same for ``telemetry.csv``.
        results: ``result.json`` of each run, by run name.
        missing: one sentence for each thing that a finished sweep would have and this one has not.
    """

    folder: Path
    summary: dict[str, Any]
    parameters: tuple[Parameter, ...]
    trials: pd.DataFrame
    curves: pd.DataFrame
    telemetry: pd.DataFrame
    results: dict[str, dict[str, Any]]
    missing: tuple[str, ...]

    def __repr__(self) -> str:
        searched = ", ".join(self.names) or "nothing"
        return f"SweepResults({str(self.folder)!r}: {plural(len(self.trials), 'run')}, searched {searched})"

    @property
    def objective(self) -> str:
        """The metric the sweep minimises."""
        return str(self.summary.get("objective") or "val_perplexity")

    @property
    def names(self) -> list[str]:
        """Short names of the searched parameters."""
        return [parameter.name for parameter in self.parameters]

    def parameter(self, name: str) -> Parameter:
        """Look a parameter up; a name the sweep did not search is the user's mistake.

        Raises:
            UserError: if ``name`` was not searched.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise UserError(
            f"plots: {name!r} was not searched in sweep {self.summary['name']!r}; "
            f"searched: {', '.join(self.names) or 'nothing'}. Correct the sweep's `plots` entry."
        )

    def where(self, frame: pd.DataFrame, conditions: Mapping[str, Any] | None) -> pd.DataFrame:
        """Rows of ``frame`` whose parameters have the levels of ``conditions`` (a plot's ``filter``).

        Raises:
            UserError: if they are no mapping, or name a parameter or a level that the sweep has not.
        """
        if not isinstance(conditions, Mapping | None):
            raise UserError(f"plots: filter={conditions!r}: give a mapping of parameter to level.")
        for name, value in (conditions or {}).items():
            parameter = self.parameter(name)
            known = {level_name(parameter, level): level for level in parameter.levels}
            wanted = name_of(name, value)
            if wanted not in known:
                raise UserError(
                    f"plots: filter {name}={wanted} matches no value of {name}; use one of {', '.join(known)}."
                )
            frame = frame[frame[name] == known[wanted]]
        return frame


def load_sweep(folder: str | Path) -> SweepResults:
    """Read ``runs/<name>``.

    Args:
        folder: the directory a sweep wrote.

    Returns:
        What was found, with ``missing`` naming what a finished sweep would also have.

    Raises:
        UserError: if the directory, ``summary.json`` or ``trials.csv`` is missing or unreadable, or if a
            run's file cannot be parsed.
    """
    folder = Path(folder)
    advice = f"run `make sweep EXP={folder.name}` first (`elas sweep FILE` for a file of your own), or correct the name"
    if not folder.is_dir():
        raise UserError(f"no sweep in {folder}: the directory does not exist; {advice}.")
    summary = read_json(folder / "summary.json", advice, SUMMARY_FIELDS)
    if parts := summary.get("parts"):
        names = ", ".join(str(folder.with_name(part["folder"])) for part in parts)
        raise UserError(f"{folder} is of several sweeps: name one of {names}")
    for key in ("name", "search"):
        if key not in summary:
            raise UserError(f"{folder / 'summary.json'}: key {key!r} is missing; {advice}.")
    cells = _read_csv(folder / "trials.csv", advice)
    required = [*KEY_COLUMNS, *summary["search"]]
    if absent := [column for column in required if column not in cells.columns]:
        raise UserError(f"{folder / 'trials.csv'}: columns {', '.join(absent)} are missing; {advice}.")
    parameters, trials, notes = _trials(cells, summary, folder)
    joined = trials[["run", "seed", "state", *(parameter.name for parameter in parameters)]]
    curves, telemetry, results, absent_files = _read_runs(folder / "runs", joined, advice)
    return SweepResults(
        folder=folder,
        summary=summary,
        parameters=parameters,
        trials=trials,
        curves=curves,
        telemetry=telemetry,
        results=results,
        missing=(*notes, *absent_files, *_unfinished(folder, summary, parameters, trials)),
    )


def results_of(sweep: str | Path | SweepResults) -> SweepResults:
    """A sweep's results as they were read before, or read now from its folder."""
    return sweep if isinstance(sweep, SweepResults) else load_sweep(sweep)


def _read_runs(
    home: Path, trials: pd.DataFrame, advice: str
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[str, Any]], list[str]]:
    """Curves, telemetry and results of the runs, and a sentence for each file that is not there."""
    curves: list[pd.DataFrame] = []
    telemetry: list[pd.DataFrame] = []
    results: dict[str, dict[str, Any]] = {}
    no_curve, no_result = [], []
    for run in trials["run"]:
        if (path := home / run / "curve.csv").is_file():
            curves.append(_read_csv(path, advice).assign(run=run))
        else:
            no_curve.append(run)
        if (path := home / run / "telemetry.csv").is_file():
            telemetry.append(_read_csv(path, advice).assign(run=run))
        if (path := home / run / "result.json").is_file():
            results[run] = read_json(path, advice, RESULT_FIELDS)
        else:
            no_result.append(run)
    notes = []
    if no_curve:
        notes.append(f"Absent from the curves, for want of a curve.csv: {', '.join(no_curve)}.")
    if no_result:
        notes.append(f"Of unknown hardware and versions, for want of a result.json: {', '.join(no_result)}.")
    return _join(curves, trials), _join(telemetry, trials), results, notes


def read_json(path: Path, advice: str, fields: Fields | None = None) -> dict[str, Any]:
    """Read an object.

    Args:
        path: The file.
        advice: What the user can do, for the message.
        fields: What its fields are held to.

    Raises:
        UserError: The file is missing or holds something else; the message ends in ``advice``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); delete it and {advice}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; delete it and {advice}.")
    if wrong := wrong_field(content, fields or {}):
        raise UserError(f"{path}: {wrong}; correct it, or delete it and {advice}.")
    return content


def read_numbers(path: Path, advice: str) -> pd.DataFrame:
    """Read a run's table: numbers in all columns but ``site``.

    Raises:
        UserError: The file is missing or no table; the message ends in ``advice``.
    """
    return _numbers(_read_csv(path, advice))


def _numbers(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(**{name: _column(cells[name]) for name in cells.columns if name not in ("site", "run")})


def _read_csv(path: Path, advice: str) -> pd.DataFrame:
    # Cells stay text here: pandas' guesses would turn a method called "none" or "NA" into a hole.
    try:
        return pd.read_csv(path, dtype=object, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice}.") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; {advice}.") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); delete it and {advice}.") from None


def _column(cells: pd.Series) -> pd.Series:
    # errors="coerce": a half-written last line of a stopped run reads as a hole, not as a crash.
    return pd.to_numeric(cells, errors="coerce").astype(float)


def _trials(
    cells: pd.DataFrame, summary: dict[str, Any], folder: Path
) -> tuple[tuple[Parameter, ...], pd.DataFrame, list[str]]:
    where, notes = folder / "trials.csv", []
    if unknown := sorted(set(cells["state"]) - set(STATES)):
        raise UserError(f"{where}: state {unknown[0]!r} is unknown; allowed: {', '.join(STATES)}.")
    seeds = pd.to_numeric(cells["seed"], errors="coerce")
    if seeds.isna().any():
        raise UserError(
            f"{where}: row {int(np.flatnonzero(seeds.isna())[0]) + 2} has no seed; every run needs an integer seed."
        )
    trials = pd.DataFrame({"trial": cells["trial"], "seed": seeds.astype(int), "state": cells["state"]})
    parameters = []
    for name, search in summary["search"].items():
        # a name that looks like a number or a switch ("1e-3", "true", "08") is still the name that was planned
        planned = {value for value in search.get("values") or [] if isinstance(value, str)}
        raw = [text if text in planned else parse_cell(text) for text in cells[name]]
        parameter = make_parameter(name, search, raw)
        trials[name] = pd.Series([to_level(parameter, value) for value in raw], index=cells.index, dtype=object)
        if parameter.numeric:
            trials[name] = trials[name].astype(float)
        parameters.append(parameter)
    for column in METRICS:
        trials[column] = _column(cells[column]) if column in cells else np.nan
    trials["run"] = cells["run"]
    trials["reason"] = cells.get("reason", "")
    # A point tried again with the same seed (a resumed sweep, or a sampler that came back) is the same
    # experiment: counting it twice would shrink the interval for nothing. The last attempt stands.
    key = [*(parameter.name for parameter in parameters), "seed"]
    kept = trials.drop_duplicates(key, keep="last").reset_index(drop=True)
    if len(kept) < len(trials):
        repeated = plural(len(trials) - len(kept), "run")
        notes.append(f"{repeated} repeated a point and seed; the last of each counts.")
    objective = str(summary.get("objective") or "val_perplexity")
    blank = kept[(kept["state"] == "complete") & ~np.isfinite(kept[objective])] if objective in kept else kept[:0]
    notes += [f"Run {run} is marked complete but has no {objective}: it is left out." for run in blank["run"]]
    return tuple(parameters), kept, notes


def planned_runs(summary: Mapping[str, Any]) -> int:
    """How many runs the finished sweep has; 0 where nobody has said."""
    return int((summary.get("runs") or {}).get("planned") or 0)


def planned_seeds(summary: Mapping[str, Any]) -> list[int]:
    """The seeds of a sweep; ``seeds`` may be a list or a count."""
    seeds = summary.get("seeds") or []
    return list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]


def _unfinished(
    folder: Path, summary: Mapping[str, Any], parameters: tuple[Parameter, ...], trials: pd.DataFrame
) -> list[str]:
    notes = []
    planned = planned_runs(summary)
    if planned > len(trials):
        drawn = summary.get("sampler", "grid") != "grid"
        repeats = ", or the sampler drew a point again" if drawn else ""
        notes.append(f"{planned - len(trials)} of {planned} planned runs have not finished{repeats}.")
        notes += _missing_points(summary, parameters, trials, planned)
    if not (homes := folder / "runs").is_dir():
        return notes
    # runs that have ended without a row are of what the sweep's file was before
    begun = sorted(p.name for p in homes.iterdir() if p.is_dir() and not (p / "result.json").exists())
    if stray := [name for name in begun if name not in set(trials["run"])]:
        notes.append(f"Begun but without a row in trials.csv: {', '.join(stray)}.")
    return notes


def _missing_points(
    summary: Mapping[str, Any], parameters: tuple[Parameter, ...], trials: pd.DataFrame, planned: int
) -> list[str]:
    seeds = planned_seeds(summary)
    grid = list(product(*(parameter.levels for parameter in parameters)))
    # Only a full grid says which points are missing: a sampler decides as it goes, and a sweep may leave
    # combinations out.
    if len(grid) * len(seeds) != planned or any(s.get("kind") != "choices" for s in summary["search"].values()):
        return []
    notes, untouched = [], []
    for point in grid:
        rows = trials
        for parameter, level in zip(parameters, point, strict=True):
            rows = rows[rows[parameter.name] == level]
        names = ", ".join(phrase(p, level) for p, level in zip(parameters, point, strict=True))
        if rows.empty:
            untouched.append(names)
        elif len(rows) < len(seeds):
            notes.append(f"Point {names}: {len(rows)} of {len(seeds)} seeds.")
    if untouched:
        notes.append(f"Without any run yet: {'; '.join(untouched)}.")
    return notes


def _join(frames: list[pd.DataFrame], trials: pd.DataFrame) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame(columns=list(trials.columns))
    joined = trials.rename(columns={name: f"{name}_searched" for name in frames[0].columns if name != "run"})
    # the cells of all runs become numbers at once: a call for each file takes longer than to read it
    return _numbers(pd.concat(frames, ignore_index=True)).merge(joined, on="run", how="left", validate="many_to_one")
