"""The front of a sweep with several objectives: the points that no other beats in all of them."""

from __future__ import annotations

from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.metrics import metric_of
from elas_lightning.analysis.parameters import level_name
from elas_lightning.analysis.plots.pareto import front
from elas_lightning.analysis.points import gather
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import plural, plus_minus


def front_table(results: SweepResults) -> Table | None:
    """One row a point of the front, the best in the first objective first; ``None`` for a single objective."""
    metrics = [metric_of(name) for name in results.summary.get("objectives") or []]
    if len(metrics) < 2:
        return None
    # by point, what it is in each metric
    every = list(zip(*(gather(results, results.names, metric.column) for metric in metrics), strict=True))
    # as in the study, where a diverged seed makes its point the worst: the others' mean would speak for the lucky ones
    diverged = sum(point.counts["diverged"] > 0 for point, *_ in every)
    known = [
        (points[0].levels, estimates)
        for points in every
        if not points[0].counts["diverged"]
        and len(estimates := [point.estimate for point in points if point.estimate]) == len(metrics)
    ]
    signed = [[m.scale * m.sign * estimates[k].mean for _, estimates in known] for k, m in enumerate(metrics)]
    rows = [
        (
            *(level_name(results.parameter(name), level) for name, level in known[i][0].items()),
            *(plus_minus(estimate, m.scale) for estimate, m in zip(known[i][1], metrics, strict=True)),
        )
        for i in sorted(front(*signed), key=lambda i: signed[0][i])
    ]
    caption = (
        f"On the front: {len(rows)} of {len(known)} points. No other point is as good in every column and better in "
        "one, by the means; which of two close points is better is not settled. Mean ± half of the 95 % t-interval."
    )
    if diverged:
        caption += f" {plural(diverged, 'point')} with a diverged run cannot be on it."
    heads = [f"{m.label}, {m.better} is better" for m in metrics]
    return Table(caption, (*(p.label for p in results.parameters), *heads), tuple(rows), len(results.parameters))
