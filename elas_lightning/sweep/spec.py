"""What a sweep asks: a YAML file of ``sweeps/`` read into validated dataclasses.

A *point* is one choice for every dimension of the search, by its label (for a range, a number); a *run* is a point
with a seed.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from elas_lightning.errors import UserError
from elas_lightning.plot_options import PLOT_OPTIONS
from elas_lightning.sweep.objectives import OBJECTIVES, QUALITY, Objective
from elas_lightning.sweep.shape import build, is_a, read_fields
from elas_lightning.trials_table import columns

Sampler = Literal["grid", "tpe", "random"]
Pruner = Literal["none", "median"]

Point = dict[str, Any]


@dataclass(frozen=True)
class Pruning:
    """When the pruner may begin.

    Args:
        startup_points: Other points that must have got to the same seed and step before one is judged.
        min_fraction: Share of a run's steps before which none is stopped: while the learning rate rises, and just
            after, curves cross.
    """

    startup_points: int = 4
    min_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not is_a(self.startup_points, int) or self.startup_points < 1:
            raise UserError(f"pruning.startup_points is {self.startup_points!r}: give a whole number from 1")
        if not is_a(self.min_fraction, int | float) or not 0 <= self.min_fraction <= 1:
            raise UserError(f"pruning.min_fraction is {self.min_fraction!r}: give a share of a run, 0 to 1")


@dataclass(frozen=True)
class Dimension:
    """One searched parameter, known by a short name.

    Exactly one of three forms:

    - ``overlays``: choice name to an overlay below ``experiments/`` (a method, say);
    - ``keys`` with ``choices``: dotted keys that all take the chosen value; a list, or a mapping of labels to values;
    - ``keys`` with ``low`` and ``high`` (``log`` for a logarithmic scale): a range, for a sampler that samples.

    With ``relative_to`` the choice is a factor: the keys get it times the value of that dotted key in the base
    configuration, rounded where that value is an integer. So one file serves every model size.

    ``factors`` says the same for keys that change together: choice name to dotted keys, each with the factor that its
    own value in the base configuration is multiplied by. They come on top of ``overlays``, or are all there is to a
    choice.
    """

    name: str
    keys: tuple[str, ...] = ()
    choices: tuple[Any, ...] | dict[str, Any] = ()
    overlays: dict[str, str] = field(default_factory=dict)
    factors: dict[Any, dict[str, float]] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    log: bool = False
    relative_to: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        where = f"search.{self.name}"
        named = bool(self.overlays or self.factors)
        if sum([named, bool(self.choices), self.is_range]) != 1:
            raise UserError(f"{where}: give exactly one of overlays, choices, or low and high")
        if bool(self.keys) == named:
            raise UserError(f"{where}: choices and ranges need keys (dotted names to set); overlays take none")
        self._check_factors(where)
        if self.is_range and (self.low is None or self.high is None or not self.low < self.high):
            raise UserError(f"{where}: low is {self.low}, high is {self.high}: both are needed, low below high")
        if self.is_range and self.log and self.low is not None and self.low <= 0:
            raise UserError(f"{where}: low is {self.low}: a logarithmic range starts above 0")
        if self.log and not self.is_range:
            raise UserError(f"{where}: log is how values between low and high are drawn: leave it out beside choices")
        if isinstance(self.choices, tuple) and len(self.options) < len(self.choices):
            raise UserError(f"{where}: choices has one value twice: {', '.join(map(str, self.choices))}")

    def _check_factors(self, where: str) -> None:
        for factor in self.options.values() if self.relative_to else ():
            if not is_a(factor, int | float):
                raise UserError(
                    f"{where}.choices has {factor!r}: give numbers, which are factors of {self.relative_to}"
                )
        for label, factors in self.factors.items():
            if self.overlays and label not in self.overlays:
                known = ", ".join(map(str, self.overlays))
                raise UserError(f"{where}.factors: {label!r} is none of the overlays' choices: {known}")
            for key, factor in factors.items():
                if not is_a(factor, int | float) or not factor > 0:
                    raise UserError(f"{where}.factors: {label!r} has {key}: {factor!r}: give a number above 0")

    @property
    def is_range(self) -> bool:
        """Whether values are drawn from an interval."""
        return self.low is not None or self.high is not None

    @property
    def sets(self) -> set[str]:
        """The dotted keys that it sets, apart from those of overlays."""
        chosen = {leaf for key in self.keys for value in self.options.values() for leaf in leaves(key, value)}
        drawn = self.keys if self.is_range else ()
        return {*chosen, *drawn, *itertools.chain.from_iterable(self.factors.values())}

    @property
    def options(self) -> dict[Any, Any]:
        """Labels to values (for overlays and factors, to these themselves); empty for a range."""
        if self.overlays or isinstance(self.choices, dict):
            return self.overlays or dict(self.choices)
        if self.factors:
            return dict(self.factors)
        return {label_of(value): value for value in self.choices}


def leaves(key: str, value: Any) -> Iterator[str]:
    """The dotted keys that are set when ``key`` is set to a value: a mapping sets those below it."""
    if not isinstance(value, dict):
        yield key
        return
    for name, item in value.items():
        yield from leaves(f"{key}.{name}", item)


def label_of(value: Any) -> Any:
    """A value as one table cell: scalars as they are, lists joined by ``+``, an empty one ``none``."""
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value)) or "none"
    return value


@dataclass(frozen=True)
class SweepSpec:
    """A sweep, as its file says it.

    Args:
        name: The file's stem.
        question: What the sweep answers, in one sentence.
        base: Overlays below ``experiments/``, in order; ``{size}`` and ``{data}`` stand for the choices below.
        machines: For ``cpu`` and ``gpu``: the size and data that a plain ``make sweep`` takes there.
        search: The dimensions.
        without: Points of the grid to leave out, by the labels of some or all dimensions.
        seeds: Each point runs once with each seed; it sets initialisation and, apart from it, data order.
        twins: What choices of the first dimension are held against beside the first of them, label to label: what
            differs in nothing but what is asked, such as a method without its 2:4 step.
        sampler: ``grid`` runs every combination; ``tpe`` and ``random`` draw ``trials`` points.
        trials: Points to draw; only for samplers that draw.
        pruner: ``median`` stops points that look worse than the median of the others, seed by seed.
        pruning: When it may begin.
        baseline: A point, or a part of one by some dimensions' labels, that the pruner never stops.
        objective: The validation figure to minimise, averaged over seeds; or a list of figures, each with its own
            better direction, of which the first is the one that tables and plots take unless told otherwise.
        overrides: Dotted keys set for every run.
        plots: What to draw, see ``elas_lightning.analysis.plots``.
    """

    name: str
    question: str
    base: tuple[str, ...]
    machines: dict[str, dict[str, str]]
    search: tuple[Dimension, ...]
    seeds: tuple[int, ...]
    sampler: Sampler = "grid"
    without: tuple[Point, ...] = ()
    trials: int | None = None
    pruner: Pruner = "none"
    pruning: Pruning = field(default_factory=Pruning)
    baseline: Point = field(default_factory=dict)
    objective: str | tuple[str, ...] = "val_perplexity"
    overrides: dict[str, Any] = field(default_factory=dict)
    plots: tuple[dict[str, Any], ...] = ()
    twins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for complaint in self._complaints():
            raise UserError(f"sweeps/{self.name}.yaml: {complaint}")

    def _complaints(self) -> Iterator[str]:
        """What is wrong; whoever asks for the next one holds that the one before is mended."""
        if self.sampler not in get_args(Sampler):
            yield f"sampler is {self.sampler!r}: {', '.join(get_args(Sampler))}"
        if self.pruner not in get_args(Pruner):
            yield f"pruner is {self.pruner!r}: {', '.join(get_args(Pruner))}"
        if not self.search:
            yield "search is empty: name at least one dimension"
        for name in {d.name for d in self.search} & set(columns()):
            yield f"search.{name}: trials.csv has a column of this name already; give another, and a label if you like"
        setting = {"seed_everything": "seeds", "data.seed": "seeds"}
        for dimension in self.search:
            for key in dimension.sets:
                if key in setting:
                    yield f"search.{dimension.name} sets {key}, which {setting[key]} sets for each run: only one may"
                setting[key] = f"search.{dimension.name}"
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield "seeds: give at least one, each once"
        if set(self.machines) != {"cpu", "gpu"}:
            yield "machines: give size and data for cpu and for gpu"
        if (self.sampler == "grid") != (self.trials is None):
            yield (
                f"trials is {self.trials}: a grid has no trials (it runs every combination), other samplers need them"
            )
        if self.sampler == "grid" and any(dimension.is_range for dimension in self.search):
            yield "sampler is grid: a range has no end of values; give choices, or sampler: tpe with trials"
        for point in self.without:
            yield from self._wrong_choices("without", point)
        if self.without and self.is_search:
            yield f"without leaves out points of a grid, and sampler is {self.sampler!r}: leave out without, or choices"
        if not self.is_search and next(self.grid(), None) is None:
            yield "without leaves no point of the search to run: take one of them back"
        yield from self._wrong_objectives()
        yield from self._wrong_choices("baseline", self.baseline)
        if self.pruner == "none" and (self.baseline or self.pruning != Pruning()):
            yield "baseline and pruning are the pruner's, and there is none: leave them out, or give pruner: median"
        yield from self._wrong_twins()
        for plot in self.plots:
            yield from self._wrong_options(plot)

    def _wrong_twins(self) -> Iterator[str]:
        name = self.search[0].name
        for label in itertools.chain.from_iterable(self.twins.items()):
            yield from self._wrong_choices("twins", {name: label})
        for label, twin in self.twins.items():
            if not isinstance(label, str) or not isinstance(twin, str):
                yield f"twins has {label!r}: {twin!r}: give the choices of {name} labels, a mapping of texts to values"
            if label == twin:
                yield f"twins: {label!r} is held against itself; name another choice of {name}"

    def _wrong_choices(self, where: str, point: Point) -> Iterator[str]:
        """Why something is no point of the search, nor a part of one."""
        searched = {dimension.name: dimension for dimension in self.search}
        for name, label in point.items():
            if name not in searched:
                yield f"{where} has {name!r}, which is not searched: {', '.join(searched)}"
            elif label not in searched[name].options:
                choices = ", ".join(map(str, searched[name].options)) or "it has a range"
                yield f"{where}: {label!r} is no choice of {name}: {choices}"

    def _wrong_options(self, plot: dict[str, Any]) -> Iterator[str]:
        """Why a plot cannot be drawn, before hours of runs rather than after them."""
        kind, searched = plot.get("kind"), [dimension.name for dimension in self.search]
        if not isinstance(kind, str) or kind not in PLOT_OPTIONS:
            yield f"plots: kind is {kind!r}: {', '.join(PLOT_OPTIONS)}"
            return
        options = PLOT_OPTIONS[kind]
        given = {"x": "lr", **plot} if kind == "lr_curve" else plot
        for key, value in given.items():
            if key not in ("kind", *options.known):
                yield f"plots: {kind} has no option {key!r}: there are {options.listed}"
            if key in options.parameters and value not in searched:
                yield f"plots: {kind} has {key}={value!r}, which is not searched: {', '.join(searched)}"
            if value not in options.values.get(key, [value]):
                yield f"plots: {kind} has {key}={value!r}: {', '.join(options.values[key])}"
        for key in options.needed:
            if key not in plot:
                yield f"plots: {kind} needs {key}; there are {options.listed}"
        yield from self._wrong_levels(kind, given)

    def _wrong_levels(self, kind: str, plot: dict[str, Any]) -> Iterator[str]:
        """Choices that a plot names. Of a range, and of factors, it names what they come to, known after the runs."""
        conditions = plot.get("filter", {})
        if not isinstance(conditions, dict):
            yield f"plots: {kind} has filter={conditions!r}: give a mapping of searched names to choices"
            return
        split = plot.get("series") or plot.get("group") or (plot["x"] if kind in ("bars", "differences") else None)
        named = [(split, plot[key]) for key in ("baseline", "focus") if split and key in plot]
        known_later = {d.name for d in self.search if d.is_range or d.relative_to}
        for name, label in (*conditions.items(), *named):
            if name not in known_later:
                yield from self._wrong_choices(f"plots: {kind}", {name: label})

    def _wrong_objectives(self) -> Iterator[str]:
        names = self._objective_names
        if not names or len(set(names)) < len(names):
            yield "objective: give at least one figure, each once"
        for name in names:
            if name not in OBJECTIVES:
                yield f"objective is {name!r}: {', '.join(OBJECTIVES)}"
        if self.pruner != "none" and len(names) > 1:
            yield (
                f"pruner is {self.pruner!r} with {len(names)} objectives: no point is worse in all of them until it "
                "has ended; leave pruner out, or give one objective"
            )
        if self.pruner != "none" and names[0] not in QUALITY:
            yield f"pruner is {self.pruner!r}: it judges by validations; objective is one of {', '.join(QUALITY)} then"

    @property
    def _objective_names(self) -> tuple[str, ...]:
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the sweep looks at, the main one first."""
        return tuple(Objective(name, OBJECTIVES[name]) for name in self._objective_names)

    @classmethod
    def read(cls, path: Path) -> "SweepSpec":
        """Read a sweep file.

        Raises:
            UserError: It is not YAML, or has unknown, missing or impossible fields.
        """
        content = read_fields(path)
        content["search"] = [
            build(Dimension, f"{path}: search.{name}", fields, name=name)
            for name, fields in content.get("search", {}).items()
        ]
        if "pruning" in content:
            content["pruning"] = build(Pruning, f"{path}: pruning", content["pruning"])
        return build(cls, str(path), content, name=path.stem)

    @property
    def is_search(self) -> bool:
        """Whether points are drawn one after another rather than all known beforehand."""
        return self.sampler != "grid"

    def grid(self) -> Iterator[Point]:
        """Every combination of choices, the first dimension varying fastest: an unfinished sweep then has all
        methods at some ranks rather than all ranks of one method."""
        axes = [dimension.options for dimension in reversed(self.search)]
        for combination in itertools.product(*axes):
            point = dict(zip((d.name for d in self.search), reversed(combination), strict=True))
            if not any(left_out.items() <= point.items() for left_out in self.without):
                yield point
