"""Several sweeps under one question: ``sweeps/paper.yaml``, run part by part as far as the time allows.

A part is an ordinary sweep with a folder of its own, the one that it has when it is run alone, so that nothing is
run twice. The composite's own folder holds ``summary.json``, which names its parts, and the report on all of them.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from elas_lightning.errors import UserError
from elas_lightning.files import write_whole
from elas_lightning.layout import RESULT_NAME, sweep_folder, sweep_path
from elas_lightning.result import RunResult
from elas_lightning.sweep.progress import duration
from elas_lightning.sweep.run import Request, SweepRun, fill
from elas_lightning.sweep.shape import build, is_a, read_fields
from elas_lightning.sweep.worker import Budget
from elas_lightning.training.hardware import device_kind


@dataclass(frozen=True)
class CompositeSpec:
    """A list of sweeps, as its file says it.

    Args:
        name: The file's stem.
        question: What all of them together answer.
        parts: Names in ``sweeps/``, in order of importance: when the time is over, the last ones are missing.
        budget_minutes: For ``cpu`` and ``gpu``: after how long a plain run begins no more runs; without end where
            a kind of machine is not named.
    """

    name: str
    question: str
    parts: tuple[str, ...]
    budget_minutes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for complaint in self._complaints():
            raise UserError(f"sweeps/{self.name}.yaml: {complaint}")

    def _complaints(self) -> Iterator[str]:
        if not self.parts or len(set(self.parts)) < len(self.parts):
            yield "parts: name at least one sweep, each once"
        if self.name in self.parts:
            yield f"parts: {self.name} cannot be a part of itself"
        if not set(self.budget_minutes) <= {"cpu", "gpu"}:
            yield f"budget_minutes names {', '.join(self.budget_minutes)}: cpu and gpu are allowed"
        for kind, minutes in self.budget_minutes.items():
            if not is_a(minutes, int | float) or not 0 <= minutes < math.inf:
                yield f"budget_minutes.{kind} is {minutes!r}: give minutes, 0 or more"

    @classmethod
    def read(cls, path: Path) -> "CompositeSpec":
        """Read a composite's file.

        Raises:
            UserError: It has unknown, missing or impossible fields.
        """
        return build(cls, str(path), read_fields(path), name=path.stem)


def is_composite(name: str) -> bool:
    """Whether a file of ``sweeps/`` lists parts instead of a search.

    Raises:
        UserError: There is no such file.
    """
    try:
        content = yaml.safe_load(sweep_path(name).read_text())
    except (UnicodeDecodeError, yaml.YAMLError):
        return False  # SweepSpec.read says what is wrong with it
    return isinstance(content, dict) and "parts" in content


class Composite:
    """A composite on a machine: the plans of its parts and the folder of its report.

    Args:
        request: What a person asked for; size, data and overrides go to each part.

    Raises:
        UserError: A part is unknown, is a composite itself, or cannot be run as asked.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.spec = CompositeSpec.read(sweep_path(request.name))
        self.folder = sweep_folder(request.name, request.size, request.data)
        for part in self.spec.parts:
            if is_composite(part):
                raise UserError(f"sweeps/{self.spec.name}.yaml: the part {part} has parts itself; name those")
        self.plans = [request.part(part).plan() for part in self.spec.parts]

    @property
    def minutes(self) -> float | None:
        """The budget: what was asked for, else what the file says for this machine."""
        if self.request.budget is not None:
            return self.request.budget
        return self.spec.budget_minutes.get(device_kind())

    def announce(self, console: Console) -> None:
        """Say what is asked and how long it may take; to check all points of many parts takes a while, too."""
        console.print(
            f"{self.spec.question}\n{len(self.plans)} parts, {_in_words(self.minutes)}, into {self.folder}/",
            highlight=False,
        )

    def check(self, console: Console) -> None:
        """Refuse before the first run what a later one would trip over.

        Raises:
            UserError: A point of a part is no possible configuration.
        """
        with console.status("") as shown:
            for plan in self.plans:
                shown.update(f"checking {plan.spec.name}")
                plan.check()

    def list_runs(self) -> Iterator[str]:
        """What there is to run, line by line, with an estimate of the time by the runs that are there."""
        missing = steps = 0
        there: list[tuple[float, int]] = []
        for plan in self.plans:
            yield f"{plan.spec.name}: {plan.spec.question} ({plan.planned_runs} runs)"
            if plan.spec.is_search:
                yield f"  {plan.spec.trials} points are drawn by {plan.spec.sampler}"
                missing += plan.planned_runs
                steps += plan.planned_runs * plan.steps
                continue
            for planned in plan.runs():
                stored = _finished(planned.request.directory)
                if stored is None:
                    missing += 1
                    steps += plan.steps_of(planned)
                elif stored.metrics.get("seconds"):
                    there.append((stored.metrics["seconds"], plan.steps_of(planned)))
                state = "there" if stored else "to run"
                yield f"  {planned.label}, seed {planned.seed} ({state}): {planned.request.command}"
        yield f"{missing} runs are missing; {_estimate(steps, there)}; {_in_words(self.minutes)}"

    def run(self, console: Console) -> list[str]:
        """Run what is missing, part by part, until all is there or the time is over.

        Returns:
            The parts that are not complete, each with what it lacks.

        Raises:
            Interrupted: Stopped by the user; the same call goes on.
        """
        # All parts get their tables before the first run is made: the report names what is missing.
        parts = zip(self.spec.parts, self.plans, strict=True)
        runs = [SweepRun(plan, self.request.part(part), console) for part, plan in parts]
        self.write_summary()
        fill(runs, self.request, console, Budget(self.minutes))
        return [f"{run.plan.spec.name}: {run.missing} of {run.plan.planned_runs} runs" for run in runs if run.missing]

    def write_summary(self) -> None:
        """Write ``summary.json``, whole or not at all: the analysis finds the parts by it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "name": self.spec.name,
            "question": self.spec.question,
            "command": self.request.command,
            "parts": [{"name": plan.spec.name, "folder": plan.folder.name} for plan in self.plans],
        }
        write_whole(self.folder / "summary.json", json.dumps(content, indent=1, ensure_ascii=False))


def _finished(directory: Path) -> RunResult | None:
    return RunResult.read(directory) if (directory / RESULT_NAME).exists() else None


def _estimate(steps: int, there: list[tuple[float, int]]) -> str:
    """How long so many optimizer steps take, by the seconds and steps of the runs that are there."""
    if not steps:
        return "nothing is left to do"
    if not there:
        return "how long they take is known once one has run here"
    each = sum(seconds for seconds, _ in there) / sum(made for _, made in there)
    return f"about {duration(steps * each)} at {1000 * each:.0f} ms a step (mean of the {len(there)} that are there)"


def _in_words(minutes: float | None) -> str:
    return "no time limit" if minutes is None else f"{minutes:g} minutes to begin runs in"
