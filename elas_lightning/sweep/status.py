"""``elas sweep status``: how far studies are, who is at work, what has failed. It reads and changes nothing.

From one look at a study it cannot be told whether another machine's worker is dead: that takes a watcher
(``heartbeat.py``). What is told is how old its last news is.
"""

import json
import math
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from elas_lightning.errors import UserError
from elas_lightning.layout import RUNS
from elas_lightning.sweep import claims
from elas_lightning.sweep.origin import is_gone
from elas_lightning.sweep.progress import duration
from elas_lightning.sweep.space import is_of
from elas_lightning.sweep.storage import STUDY_NAME, for_dashboard, open_storage, redact
from elas_lightning.sweep.study import PLANNED, results_of
from elas_lightning.training.live import read_progress

# without news for so long, a run is pointed out
SILENT_SECONDS = 300.0


def describe_all(url: str | None) -> Iterator[str]:
    """The state of every sweep in a storage, or of those with a study of their own below ``runs/``.

    Raises:
        UserError: There is none.
    """
    folders = [path.parent for path in sorted(RUNS.glob(f"*/{STUDY_NAME}"))]
    if url is not None:
        yield from _describe(open_storage(url, RUNS), url, folders)
    elif not folders:
        raise UserError(f"there is no study below {RUNS}/: `elas sweep NAME` begins one")
    for index, folder in enumerate(folders if url is None else ()):
        if index:
            yield ""
        yield from describe_folder(folder, None)


def describe_folder(folder: Path, url: str | None, name: str = "") -> Iterator[str]:
    """The state of one sweep.

    Args:
        folder: ``runs/<name>``.
        url: Where its study lives; ``None`` for its folder.
        name: The sweep's, to find it among others at ``url``; what is in the folder is all of one sweep.

    Raises:
        UserError: It has not been begun.
    """
    if url is None and not (folder / STUDY_NAME).exists():
        raise UserError(f"there is no study in {folder}/: `elas sweep` begins one, --storage names another place")
    where = url or f"sqlite:///{folder / STUDY_NAME}"
    lines = list(_describe(open_storage(url, folder), where, [folder], name if url else ""))
    if not lines:
        raise UserError(
            f"there is no study of {folder.name} in {redact(where)}: `elas sweep` with that --storage begins one"
        )
    yield from lines


def describe_parts(folder: Path, url: str | None) -> Iterator[str]:
    """The state of each part of a composite, which has no study of its own.

    Args:
        folder: ``runs/<name>``, whose ``summary.json`` names the parts.
        url: As for :func:`describe_folder`.

    Raises:
        UserError: A part has not been begun.
    """
    parts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["parts"]
    for index, part in enumerate(parts):
        if index:
            yield ""
        yield from describe_folder(folder.parent / part["folder"], url, part["name"])


def _describe(storage: BaseStorage, where: str, folders: list[Path], name: str = "") -> Iterator[str]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = [study for study in storage.get_all_studies() if not name or is_of(study.study_name, name)]
    for study in found:
        yield from _describe_study(optuna.load_study(study_name=study.study_name, storage=storage), folders)
    if found and (shown := for_dashboard(where)):
        yield f"  dashboard: optuna-dashboard {shlex.quote(shown)}"


def _describe_study(study: optuna.Study, folders: list[Path]) -> Iterator[str]:
    planned = study.user_attrs.get(PLANNED)
    factors = (planned or {}).get("relative_to", {})
    trials = study.get_trials(deepcopy=False)
    is_search = any(claims.PLACE not in trial.system_attrs for trial in trials)
    board = claims.Board(trials, max((len(t.params) for t in trials), default=0), is_search)
    last = {place: board.live(place) or board.last(place) for place in board.places}
    states = Counter(_state(trial) for trial in last.values() if trial is not None)
    if planned:
        states["not begun"] = max(0, planned["points"] - len(last))
    points = ", ".join(f"{number} {state}" for state, number in states.items() if number)
    runs = Counter(result.state for result in {r.run: r for t in board.trials for r in results_of(t)}.values())
    ended = ", ".join(f"{number} {state}" for state, number in sorted(runs.items())) or "none ended"
    yield study.study_name
    yield f"  points: {points or 'none'}"
    yield f"  runs: {ended}" + (f" of {planned['runs']}" if planned else "")
    for trial in board.trials:
        if trial.state == TrialState.RUNNING:
            yield f"  running: {_running(trial, folders, factors)}"
    names = planned["objectives"] if planned else ["objective"] * len(study.directions)
    best = sorted(study.best_trials, key=lambda trial: trial.values)  # those that no other is better than
    for trial in best if len(names) > 1 else best[:1]:
        if all(map(math.isfinite, trial.values)):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values, strict=True))
            yield f"  best: {figures} (trial {trial.number}: {_point(trial, factors)})"
    for latest in last.values():
        if latest is not None and claims.ended(latest) == claims.FAILED:
            reason = latest.user_attrs.get(claims.REASON, "no reason given")
            yield f"  failed: trial {latest.number} ({_point(latest, factors)}): {reason}"


def _state(trial: FrozenTrial) -> str:
    how = claims.ended(trial)
    if how is None:
        return str(trial.state.name.lower())
    return "failed" if how == claims.FAILED else "to be taken up again"


def _running(trial: FrozenTrial, folders: list[Path], factors: dict[str, str]) -> str:
    worker = trial.system_attrs.get(claims.WORKER)
    who = f"{worker['host']}, process {worker['pid']}" if worker else "an unknown worker"
    run = trial.system_attrs.get(claims.RUN)
    said = [f"trial {trial.number} ({_point(trial, factors)}) on {who}"]
    homes = [folder / "runs" / str(run) for folder in folders]
    progress = next((p for home in homes if (p := read_progress(home)) is not None), None)
    if is_gone(worker):
        said.append("which is gone; the next worker takes it up")
    elif progress is not None:
        said.append(_pace(progress))
    return ", ".join(said)


def _pace(progress: dict[str, Any]) -> str:
    step, steps, seconds = progress["step"], progress["max_steps"], progress["seconds"]
    parts = [f"step {step}/{steps}"]
    if seconds > 0 and step > 0:
        parts.append(f"{progress['tokens'] / seconds:.0f} tokens/s")
        parts.append(f"{duration((steps - step) * seconds / step)} of training left")
    silent = time.time() - progress["time"]
    if silent > SILENT_SECONDS:
        parts.append(f"no news for {duration(silent)}")
    return ", ".join(parts)


def _point(trial: FrozenTrial, factors: dict[str, str]) -> str:
    """A trial's parameters as the study has them: of what a choice multiplies, the factors."""
    said = []
    for name, value in trial.params.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        said.append(f"{name} {shown}" + (f" x {factors[name]}" if name in factors else ""))
    return ", ".join(said) or "not drawn yet"
