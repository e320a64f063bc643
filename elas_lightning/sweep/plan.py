"""From a sweep's points to runs: which overlays and overrides, in which directory."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from elas_lightning.configuration import check, resolve
from elas_lightning.errors import UserError
from elas_lightning.layout import overlay_path
from elas_lightning.runner import RunRequest
from elas_lightning.sweep.shape import is_a
from elas_lightning.sweep.spec import Dimension, Point, SweepSpec, leaves

# Initialisation and data order draw from generators of their own. Were both started from the same number, the two
# streams could be one and the same, and what looks like the spread of both would be the spread of one.
DATA_SEED_OFFSET = 1000
_LENGTH = "trainer.max_steps"


@dataclass(frozen=True)
class PlannedRun:
    """A point with a seed.

    Args:
        values: Searched parameters by short name, as tables and plots show them.
        seed: Of the initialisation; data order has the same number plus :data:`DATA_SEED_OFFSET`.
        request: What the runner is to do.
    """

    values: dict[str, Any]
    seed: int
    request: RunRequest

    @property
    def label(self) -> str:
        """For people: ``ELAS, rank 8``."""
        return ", ".join(str(v) if isinstance(v, str) else f"{k} {_short(v)}" for k, v in self.values.items())


@dataclass(frozen=True)
class Plan:
    """A sweep on a machine: the spec with its size, its data and the folder it fills.

    Args:
        spec: What is asked.
        size: A name in ``experiments/sizes``.
        data: A name in ``experiments/data``.
        folder: ``runs/<name>``.
        overrides: Dotted keys from the command line, over the overlays and overrides of the spec.
    """

    spec: SweepSpec
    size: str
    data: str
    folder: Path
    overrides: dict[str, Any]

    @cached_property
    def base_overlays(self) -> tuple[Path, ...]:
        """The files every run starts from."""
        return tuple(overlay_path(name.format(size=self.size, data=self.data)) for name in self.spec.base)

    @cached_property
    def base(self) -> dict[str, Any]:
        """The configuration of :attr:`base_overlays`, for ``relative_to``."""
        return resolve(self.base_overlays, {**self.spec.overrides, **self.overrides})

    def run(self, point: Point, seed: int) -> PlannedRun:
        """The run of a point with a seed."""
        overlays, values = list(self.base_overlays), {}
        overrides = {**self.spec.overrides, **self.overrides}
        for dimension in self.spec.search:
            label = point[dimension.name]
            if dimension.overlays:
                overlays.append(overlay_path(dimension.overlays[label]))
            for key, factor in dimension.factors.get(label, {}).items():
                overrides[key] = self._scaled(factor, key, f"search.{dimension.name}.factors")
            if dimension.keys:
                overrides.update(dict.fromkeys(dimension.keys, self._value(dimension, label)))
            values[dimension.name] = self._shown(dimension, label)
        overrides.update({"seed_everything": seed, "data.seed": seed + DATA_SEED_OFFSET})
        directory = self.folder / "runs" / _directory_name(values, seed, overlays, overrides)
        return PlannedRun(values, seed, RunRequest(directory, tuple(overlays), overrides))

    def runs(self) -> Iterator[PlannedRun]:
        """All runs of a grid, point by point."""
        for point in self.spec.grid():
            for seed in self.spec.seeds:
                yield self.run(point, seed)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of a run, where its point says nothing else."""
        return int(self.base["trainer"]["max_steps"])

    def steps_of(self, planned: PlannedRun) -> int:
        """Optimizer steps of a run, by which some of a sweep's take longer than others."""
        overlays, overrides = planned.request.overlays, planned.request.overrides
        if _LENGTH in overrides:
            return int(overrides[_LENGTH])
        # to resolve a stack takes a tenth of a second, and next to none of them changes the length
        if any("max_steps" in path.read_text() for path in overlays[len(self.base_overlays) :]):
            return int(resolve(overlays, overrides)["trainer"]["max_steps"])
        return self.steps

    def check(self) -> None:
        """Refuse before the first run what a later one would trip over.

        Raises:
            UserError: A point of the grid is no possible configuration, a key is set that the sweep itself sets, or the
                file names an overlay that is not there, for this kind of machine or the other.
        """
        self._check_machines()
        self._check_overrides()
        self._check_lengths()
        if self.spec.is_search:
            self._check_values()
            return
        for point in self.spec.grid():
            planned = self.run(point, self.spec.seeds[0])
            try:
                check(planned.request.overlays, planned.request.overrides)
            except UserError as error:
                raise UserError(f"sweep {self.spec.name}, {planned.label}: {error}") from error

    def _check_values(self) -> None:
        """Which points a search will draw nobody knows yet, but a key or a type that is wrong is so in all of them."""
        values = {d.name: [d.low, d.high] if d.is_range else list(d.options) for d in self.spec.search}
        first = {name: choices[0] for name, choices in values.items()}
        for name, choices in values.items():
            for value in choices:
                request = self.run({**first, name: value}, self.spec.seeds[0]).request
                try:
                    resolve(request.overlays, request.overrides)
                except UserError as error:
                    raise UserError(f"sweep {self.spec.name}: {error}") from error

    def _check_machines(self) -> None:
        """Also of the machine that this one is not: whoever writes a sweep on a laptop starts it on a GPU."""
        for kind, names in self.spec.machines.items():
            for name in self.spec.base:
                try:
                    overlay_path(name.format(**names))
                except UserError as error:
                    raise UserError(f"sweep {self.spec.name}, machines.{kind}: {error}") from error

    def _check_overrides(self) -> None:
        """Of a factor's own key the value is what it multiplies; any other that a point sets would be lost, or would
        make all points one."""
        searched = {
            key: f"search.{dimension.name}"
            for dimension in self.spec.search
            for key in dimension.sets - {dimension.relative_to, *itertools.chain(*dimension.factors.values())}
        }
        given = {**self.spec.overrides, **self.overrides}
        for key in itertools.chain.from_iterable(itertools.starmap(leaves, given.items())):
            if owner := {"seed_everything": "seeds", "data.seed": "seeds", **searched}.get(key):
                how = f"--set {key}" if key in self.overrides else f"overrides has {key}"
                raise UserError(
                    f"sweep {self.spec.name}: {how}, which each run has from {owner}: leave it out, or change {owner} "
                    "in the sweep's file"
                )

    def _check_lengths(self) -> None:
        """The pruner holds points against each other step by step, which says nothing of runs of different lengths:
        at the same step their learning rates are elsewhere."""
        if self.spec.pruner == "none":
            return
        for dimension in self.spec.search:
            set_by_factors = any(_LENGTH in factors for factors in dimension.factors.values())
            if _LENGTH in dimension.keys or set_by_factors or self._overlay_sets_length(dimension):
                raise UserError(
                    f"sweep {self.spec.name}: pruner is {self.spec.pruner!r}, which compares runs of one length, and "
                    f"search.{dimension.name} changes {_LENGTH}: leave pruner out, or give all runs the same"
                )

    def _overlay_sets_length(self, dimension: Dimension) -> bool:
        configs = (
            resolve((*self.base_overlays, overlay_path(name)), {**self.spec.overrides, **self.overrides})
            for name in dimension.overlays.values()
        )
        return any(config["trainer"]["max_steps"] != self.steps for config in configs)

    @property
    def planned_runs(self) -> int:
        """How many runs the finished sweep has."""
        points = self.spec.trials or sum(1 for _ in self.spec.grid())
        return points * len(self.spec.seeds)

    def values(self, dimension: Dimension) -> list[Any]:
        """The dimension's choices as tables show them; for a range, its two ends."""
        ends = [dimension.low, dimension.high] if dimension.is_range else dimension.options
        return [self._shown(dimension, label) for label in ends]

    def is_whole(self, dimension: Dimension) -> bool:
        """Whether a range is one of whole numbers: both ends are, and what it sets is no fraction in the base."""
        if dimension.relative_to is not None or isinstance(dimension.low, float) or isinstance(dimension.high, float):
            return False
        where = f"search.{dimension.name}.keys"
        return not any(isinstance(self._of_base(key, where), float) for key in dimension.keys)

    def _shown(self, dimension: Dimension, label: Any) -> Any:
        """A label as tables have it: what a factor came to, and any other label as it is."""
        return self._value(dimension, label) if dimension.relative_to else label

    def _value(self, dimension: Dimension, label: Any) -> Any:
        choice = label if dimension.is_range else dimension.options[label]
        if dimension.relative_to is None:
            return choice
        return self._scaled(choice, dimension.relative_to, f"search.{dimension.name}.relative_to")

    def _scaled(self, factor: float, key: str, where: str) -> Any:
        """A factor times the value of a dotted key in the base configuration."""
        reference = self._of_base(key, where)
        if not is_a(reference, int | float):
            raise UserError(
                f"sweeps/{self.spec.name}.yaml: {where} is {key!r}, which is {reference!r}: no number to multiply"
            )
        return round(factor * reference) if isinstance(reference, int) else factor * reference

    def _of_base(self, key: str, where: str) -> Any:
        """The value of a dotted key in the base configuration."""
        reference: Any = self.base
        for part in key.split("."):
            if not isinstance(reference, dict) or part not in reference:
                raise UserError(
                    f"sweeps/{self.spec.name}.yaml: {where} is {key!r}, which is no configuration key; "
                    "`elas fit --help` lists them"
                )
            reference = reference[part]
        return reference


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _directory_name(values: dict[str, Any], seed: int, overlays: list[Path], overrides: dict[str, Any]) -> str:
    """Readable, and different whenever anything differs that the run would be made from."""
    content = [path.read_text() for path in overlays] + [json.dumps(overrides, sort_keys=True, default=str)]
    digest = hashlib.sha256("\0".join(content).encode()).hexdigest()[:8]
    # the sign of a large number's exponent would become a minus
    words = [re.sub(r"(?<=\de)\+", "", f"{name}-{_short(value)}") for name, value in values.items()]
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(words).replace("²", "2")).strip("-")
    return f"{slug[:80]}_seed-{seed}_{digest}"
