"""From what a person names to contenders: runs that differ in nothing but their seeds are one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from elas_lightning.analysis.load import SweepResults, load_sweep
from elas_lightning.analysis.parameters import Parameter, level_name, name_of, side_name
from elas_lightning.analysis.run import RunResults, load_run
from elas_lightning.analysis.statistics import Estimate, estimate
from elas_lightning.analysis.wording import plural
from elas_lightning.errors import UserError
from elas_lightning.trials_table import METRICS

# Present only where something measured it.
ENERGY_COLUMNS = ("energy_joules", "tokens_per_joule")
_SEEDS = ("seed_everything", "data.seed")
# Where a run writes and what it shows, which is nothing about what it computes.
_ELSEWHERE = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "data.cache_dir",
    "ckpt_path",
    "weights_only",
)
_CHECKPOINTS = "checkpoint."


@dataclass(frozen=True)
class Contender:
    """One configuration with its seeds.

    Args:
        name: What tables and plots call it; no two have the same.
        runs: One a seed, ascending.
        config: Dotted keys to values, without seeds and places.
    """

    name: str
    runs: tuple[RunResults, ...]
    config: Mapping[str, Any]

    def values(self, column: str) -> dict[int, float]:
        """A metric by seed, of complete runs that measured it; zero is what a counter says that saw nothing."""
        found = {}
        for run in self.runs:
            value = run.metrics.get(column)
            if run.result["state"] == "complete" and value is not None and 0 < value < np.inf:
                found[int(run.result["seed"])] = float(value)
        return found

    def estimate(self, column: str) -> Estimate | None:
        """Mean and interval of a metric over seeds; None where nobody measured it."""
        return estimate(list(self.values(column).values()))


class _Named(NamedTuple):
    """A run with the name that the user or its sweep gives it, if any."""

    run: RunResults
    given: str
    label: str


def select(arguments: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Read what was named and group it.

    Args:
        arguments: Each ``[NAME=]PATH[:LABEL,...]``: the directory of a run, a folder of such directories, or a
            sweep's folder, of which labels (``ELAS``, ``rank 8``, ``rank=8``) choose the runs that have them all.

    Returns:
        The contenders in the order they were named, and a sentence for each run that was left out.

    Raises:
        UserError: A path or a label that does not exist.
    """
    return _group([item for argument in arguments for item in _read(argument, "")])


def group(runs: Sequence[RunResults]) -> tuple[list[Contender], list[str]]:
    """Group runs that were read already; otherwise as :func:`select`."""
    return _group([_Named(run, "", "") for run in runs])


def _group(named: Sequence[_Named]) -> tuple[list[Contender], list[str]]:
    # a run that died has left no configuration by which it would be one of a contender's seeds
    notes = [
        f"{item.label or item.run.name}: seed {item.run.result['seed']} is {item.run.result['state']}: "
        f"{item.run.result.get('reason')}; it has no part in the comparison."
        for item in named
        if not item.run.config
    ]
    if len(notes) == len(named):
        raise UserError(f"none of these runs can be compared: {' '.join(notes)}")
    groups: dict[tuple[str, str], list[_Named]] = {}
    for item in (item for item in named if item.run.config):
        config = json.dumps(comparable_config(item.run), sort_keys=True)
        groups.setdefault((item.given, config), []).append(item)
    members = list(groups.values())
    contenders = []
    for name, same in zip(_names(members), members, strict=True):
        by_seed: dict[int, RunResults] = {}
        for item in sorted(same, key=lambda item: str(item.run.result.get("finished"))):
            by_seed[int(item.run.result["seed"])] = item.run
        repeated = len({item.run.folder.resolve() for item in same}) - len(by_seed)
        if repeated:
            notes.append(f"{name}: {plural(repeated, 'run')} with a seed that another has; the last to finish counts.")
        runs = tuple(by_seed[seed] for seed in sorted(by_seed))
        contenders.append(Contender(name, runs, comparable_config(runs[0])))
    return contenders, notes


def comparable_config(run: RunResults) -> dict[str, Any]:
    """A run's configuration as dotted keys, without seeds and places."""
    return {
        key: value
        for key, value in _flat(run.config)
        if key not in (*_SEEDS, *_ELSEWHERE) and not key.startswith(_CHECKPOINTS)
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _read(argument: str, given: str) -> list[_Named]:
    path = Path(argument)
    if path.is_dir():
        return _read_folder(path, given, "")
    head, colon, labels = argument.rpartition(":")
    if colon and Path(head).is_dir():
        return _read_folder(Path(head), given, labels)
    name, equals, rest = argument.partition("=")
    if equals and not given and name and "/" not in name:
        return _read(rest, name)
    raise UserError(
        f"there is no folder {argument}: name the directory of a run, or a sweep's folder such as "
        "runs/rank_ablation, of which runs/rank_ablation:ELAS takes a part"
    )


def _read_folder(folder: Path, given: str, labels: str) -> list[_Named]:
    if (folder / "summary.json").is_file():
        return _read_sweep(load_sweep(folder), given, labels)
    if labels:
        raise UserError(f"{folder} is no sweep, so it has nothing labelled {labels!r}: name its runs instead")
    if (folder / "result.json").is_file():
        return [_Named(load_run(folder), given, "")]
    inside = sorted(path.parent for path in folder.glob("*/result.json"))
    if not inside:
        raise UserError(f"{folder} holds no result: neither it nor a folder in it has a result.json")
    return [_Named(load_run(path), given, "") for path in inside]


def _read_sweep(sweep: SweepResults, given: str, labels: str) -> list[_Named]:
    wanted = [label.strip().lower() for label in labels.split(",") if label.strip()]
    found: list[_Named] = []
    known: dict[str, None] = {}
    for _, row in sweep.trials.iterrows():
        words: set[str] = set()
        for parameter in sweep.parameters:
            level = level_name(parameter, row[parameter.name])
            words |= {side_name(parameter, row[parameter.name]), level, f"{parameter.name}={level}"}
            known[side_name(parameter, row[parameter.name])] = None
        if row["run"] in sweep.results and set(wanted) <= {word.lower() for word in words}:
            label = ", ".join(side_name(p, row[p.name]) for p in sweep.parameters)
            found.append(_Named(load_run(sweep.folder / "runs" / str(row["run"])), given, label))
    if not found:
        if not wanted:
            raise UserError(f"no run of {sweep.folder} has finished")
        raise UserError(f"no finished run of {sweep.folder} is labelled {labels!r}; there are: {', '.join(known)}")
    return found


def _names(groups: Sequence[Sequence[_Named]]) -> list[str]:
    """A different name for each: as given, as the sweep has it, or what only its command has."""
    words = [_words(group[0].run) for group in groups]
    common = set.intersection(*map(set, words))
    names = []
    for group, mine in zip(groups, words, strict=True):
        first = group[0]
        own = ", ".join(word for word in mine if word not in common) if len(groups) > 1 else ""
        derived = first.label or own or first.run.name
        several = sum(other[0].given == first.given for other in groups) > 1
        names.append((f"{first.given}: {derived}" if several else first.given) if first.given else derived)
    taken: dict[str, int] = {}
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        if names.count(name) > 1 and name not in taken:
            taken[name] = i
        elif name in taken:
            names[i] = f"{name} ({group[0].run.folder})"
    return names


def _words(run: RunResults) -> list[str]:
    """The overlays and overrides of a run's command, shortened: ``elas``, ``ffn_rank=8``."""
    words, parts = [], iter(shlex.split(run.command or ""))
    for part in parts:
        key, equals, value = part.partition("=")
        if key == "--config":
            words.append(Path(value if equals else next(parts, "")).stem)
        elif part.startswith("--"):
            dotted = key.removeprefix("--")
            value = value if equals else next(parts, "")
            if dotted not in (*_SEEDS, *_ELSEWHERE) and not dotted.startswith(_CHECKPOINTS):
                words.append(f"{dotted.rpartition('.')[2]}={value}")
    return words


def as_sweep(contenders: Sequence[Contender]) -> SweepResults:
    """Contenders as a sweep over one parameter, which is what plots are drawn from."""
    parameter = Parameter("contender", "Contender", tuple(contender.name for contender in contenders), numeric=False)
    trials, curves, telemetry = [], [], []
    for i, contender in enumerate(contenders):
        for run in contender.runs:
            keys: dict[str, Any] = {
                "seed": int(run.result["seed"]),
                "state": str(run.result["state"]),
                "contender": contender.name,
                "run": str(run.folder),
            }
            complete = run.result["state"] == "complete"
            measured = {
                column: float(run.metrics[column]) if complete and run.metrics.get(column) is not None else np.nan
                for column in METRICS
            }
            trials.append({"trial": str(i), **keys, **measured})
            curves.append(run.curve.assign(**keys))
            telemetry.append(run.telemetry.assign(**keys))
    filled = [[frame for frame in frames if len(frame)] for frames in (curves, telemetry)]
    joined = [pd.concat(frames, ignore_index=True) if frames else pd.DataFrame() for frames in filled]
    return SweepResults(
        folder=Path(),
        summary={
            "name": "comparison",
            "search": {"contender": {"kind": "choices", "values": list(parameter.levels)}},
            "objective": "val_perplexity",
        },
        parameters=(parameter,),
        trials=pd.DataFrame(trials),
        curves=joined[0],
        telemetry=joined[1],
        results={str(run.folder): run.result for contender in contenders for run in contender.runs},
        missing=(),
    )


def config_differences(contenders: Sequence[Contender]) -> dict[str, list[str]]:
    """Configuration keys whose values differ, each with the value of every contender in words."""
    keys = sorted({key for contender in contenders for key in contender.config})
    found = {}
    for key in keys:
        values = [contender.config.get(key) for contender in contenders]
        if any(value != values[0] for value in values):
            found[key] = [
                name_of(key, value) if key in contender.config else "absent"
                for value, contender in zip(values, contenders, strict=True)
            ]
    return found
