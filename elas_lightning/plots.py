"""Figures for notebooks: of a sweep, or of runs side by side.

Every function returns a matplotlib ``Figure`` with a canvas of its own. None of them shows a window, goes through
``pyplot`` or leaves a setting changed; a notebook displays the figure that a cell ends with:

    from elas_lightning import load_run, load_sweep, plots

    plots.curves(load_run("runs/fit/000"), load_run("runs/fit/001"))
    plots.metric_by(load_sweep("runs/rank_ablation"), x="rank", series="method", log_x=True)

What to draw is either one sweep (``load_sweep``), whose searched parameters the options name, or any number of runs
(``load_run``), which are grouped by configuration as ``elas compare`` does: runs that differ in their seeds alone are
one contender, drawn as a mean with its 95 % interval. Of runs the only parameter is ``contender``.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from elas_lightning.analysis.compare_select import as_sweep, group
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.plots.base import CannotDraw
from elas_lightning.analysis.plots.write import KINDS
from elas_lightning.analysis.run import RunResults
from elas_lightning.errors import UserError
from elas_lightning.plot_options import PLOT_OPTIONS

__all__ = [
    "bars",
    "curves",
    "differences",
    "heatmap",
    "importance",
    "lr_curve",
    "metric_by",
    "parallel",
    "pareto",
    "telemetry",
]


def curves(*results: SweepResults | RunResults, **options: Any) -> Figure:
    """The loss while training, whole and its last third enlarged.

    Args:
        results: One sweep, or runs.
        options: ``value`` (``val_loss``), ``x`` (``tokens``, ``step`` or ``seconds``); of a sweep also ``series`` and
            ``style``, parameters shown by colour and by line, and ``filter``, a mapping of parameter to level.

    Raises:
        UserError: Nothing to draw, or an option that does not fit.
    """
    return _draw("curves", results, {"series": "contender"}, options)


def pareto(*results: SweepResults | RunResults, **options: Any) -> Figure:
    """Perplexity against a cost, with the front of what nothing beats in both.

    Args:
        results: One sweep, or runs.
        options: ``x``, the cost: ``flops_per_token`` (default), ``parameters`` or ``peak_memory_bytes``; ``metric``
            (``val_perplexity``); of a sweep also ``series``, the parameter whose levels are the points.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("pareto", results, {"series": "contender"}, options)


def bars(*results: SweepResults | RunResults, **options: Any) -> Figure:
    """A metric of each level of a parameter, with its seeds and intervals.

    Args:
        results: One sweep, or runs.
        options: ``x``, the parameter; ``group``, a second one; ``metric``, ``baseline``, ``filter``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("bars", results, {"x": "contender"}, options)


def differences(*results: SweepResults | RunResults, **options: Any) -> Figure:
    """Levels of a parameter against its first one, paired by seed, and against their twins, if the sweep names some.

    Args:
        results: One sweep, or runs.
        options: ``x``, the parameter; ``baseline``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("differences", results, {"x": "contender"}, options)


def telemetry(*results: SweepResults | RunResults, **options: Any) -> Figure:
    """What the 2:4 step met and dropped, by layer, during training.

    Args:
        results: One sweep, or runs of one configuration.
        options: ``value``: ``natural_zeros`` (default), or another column of ``telemetry.csv``; ``site``, ``x``
            (``step``, ``tokens`` or ``seconds``); of a sweep also ``filter``.

    Raises:
        UserError: As :func:`curves`, or runs of several configurations.
    """
    runs = [item for item in results if isinstance(item, RunResults)]
    names = [contender.name for contender in group(runs)[0]] if runs else []
    if len(names) > 1:
        raise UserError(
            f"plots: telemetry shows one configuration, and these runs have {len(names)}: {', '.join(names)}"
        )
    return _draw("telemetry", results, {}, {"value": "natural_zeros", **options})


def metric_by(sweep: SweepResults, **options: Any) -> Figure:
    """A metric along a numeric parameter.

    Args:
        sweep: From ``load_sweep``.
        options: ``x``, the parameter; ``series``, a second one; ``metric``, ``log_x``, ``baseline``, ``filter``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("metric_by", (sweep,), {}, options)


def lr_curve(sweep: SweepResults, **options: Any) -> Figure:
    """A metric over the learning rate, diverged runs at the edge.

    Args:
        sweep: From ``load_sweep``.
        options: ``x`` (``lr``), ``series``, ``metric``, ``filter``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("lr_curve", (sweep,), {}, options)


def heatmap(sweep: SweepResults, **options: Any) -> Figure:
    """A metric for each pair of levels of two parameters.

    Args:
        sweep: From ``load_sweep``.
        options: ``x``, ``y``; ``metric``, ``filter``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("heatmap", (sweep,), {}, options)


def parallel(sweep: SweepResults, **options: Any) -> Figure:
    """Each point of a search as a line across its parameters.

    Args:
        sweep: From ``load_sweep``.
        options: ``metric``, ``filter``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("parallel", (sweep,), {}, options)


def importance(sweep: SweepResults) -> Figure:
    """How much of the objective's variation the study ascribes to each parameter.

    Args:
        sweep: From ``load_sweep``.

    Raises:
        UserError: As :func:`curves`.
    """
    return _draw("importance", (sweep,), {}, {})


def _draw(
    kind: str, results: tuple[SweepResults | RunResults, ...], defaults_of_runs: dict[str, str], options: dict[str, Any]
) -> Figure:
    runs = [item for item in results if isinstance(item, RunResults)]
    sweeps = [item for item in results if isinstance(item, SweepResults)]
    if len(runs) + len(sweeps) != len(results) or bool(runs) == bool(sweeps) or len(sweeps) > 1:
        raise UserError(
            "plots: give one sweep (load_sweep) or runs (load_run), and the options by name, e.g. value='train_loss'"
        )
    if unknown := [name for name in options if name not in PLOT_OPTIONS[kind].known]:
        raise UserError(f"plots: {kind} has no option {unknown[0]!r}: there are {PLOT_OPTIONS[kind].listed}")
    source = sweeps[0] if sweeps else as_sweep(group(runs)[0])
    chosen = {"kind": kind, **({} if sweeps else defaults_of_runs), **options}
    try:
        figure, _ = KINDS[kind](source, chosen)
    except CannotDraw as reason:
        raise UserError(f"plots: {reason}") from reason
    return figure
