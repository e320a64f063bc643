"""The front: points that nothing beats."""

from __future__ import annotations

from pathlib import Path

import matplotlib.colors
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic_runs import three_methods, write_run

from elas_lightning.analysis.compare import compare
from elas_lightning.analysis.compare_select import as_sweep
from elas_lightning.analysis.plots.base import CannotDraw
from elas_lightning.analysis.plots.pareto import front, pareto


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([1, 2, 3], [3, 2, 1], [0, 1, 2]),
        ([1, 2, 3], [1, 2, 3], [0]),
        ([1, 1, 2], [2, 1, 1], [1]),
        ([1, 1], [1, 1], [0, 1]),
        ([5], [5], [0]),
        ([2, 1, 3, 2], [2, 3, 1, 3], [0, 1, 2]),
    ],
)
def test_front(costs: list[float], values: list[float], expected: list[int]) -> None:
    assert front(costs, values) == expected


def test_beaten_points_are_grey_and_named(tmp_path: Path) -> None:
    results = as_sweep(compare([str(three_methods(tmp_path / "runs"))]).contenders)
    figure, caption = pareto(results, {"series": "contender", "x": "flops_per_token"})
    assert "one): lowrank;" in caption
    assert "grey, above or to the right of it: elas and full" in caption
    (ax,) = figure.axes
    grey = matplotlib.colors.to_hex("#b0b0b0")
    drawn = {
        (round(float(line.get_xdata()[0]), 6), matplotlib.colors.to_hex(line.get_color()))
        for line in (container.lines[0] for container in ax.containers)
    }
    assert {x for x, colour in drawn if colour == grey} == {1.85, 2.2}
    figure, _ = pareto(results, {"series": "contender", "metric": "val_loss"})
    figure.canvas.draw()
    assert figure.axes[0].yaxis.label.get_window_extent().height <= figure.bbox.height
    assert [x for x, colour in drawn if colour != grey] == [1.85]


def _ranks(home: Path, count: int) -> Figure:
    """So many contenders, of which the first beats all others."""
    for rank in range(1, count + 1):
        cost = {"flops_per_token": 1_000_000 * rank, "loss": 4.0 + 0.01 * rank}
        write_run(home / f"rank-{rank}", f"rank-{rank}", config={"ffn_rank": rank}, **cost)
    return pareto(as_sweep(compare([str(home)]).contenders), {"series": "contender"})[0]


def test_twenty_beaten_points_are_told_apart(tmp_path: Path) -> None:
    points = [container.lines[0] for container in _ranks(tmp_path, 21).axes[0].containers]
    assert len({(point.get_color(), point.get_marker()) for point in points}) == len(points) == 21


@pytest.mark.parametrize("count", [13, 14, 20])
def test_no_name_is_cut_off(tmp_path: Path, count: int) -> None:
    figure = _ranks(tmp_path, count)
    figure.canvas.draw()
    names = [text for text in figure.findobj(Text) if text.get_text().startswith(("rank-", "In colour"))]
    assert len(names) == count + 1
    for name in names:
        box = name.get_window_extent()
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, name.get_text()


def test_one_point_has_no_front(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", "a", 0)
    write_run(tmp_path / "runs" / "b", "b", 0, state="diverged")
    results = as_sweep(compare([str(tmp_path / "runs")]).contenders)
    with pytest.raises(CannotDraw, match="fewer than two points"):
        pareto(results, {"series": "contender"})


def test_one_seed_has_no_interval_on_the_front_either(tmp_path: Path) -> None:
    for name in ("lowrank", "elas"):
        write_run(tmp_path / "runs" / name, name, 0)
    _, caption = pareto(as_sweep(compare([str(tmp_path / "runs")]).contenders), {"series": "contender"})
    assert "one seed, so no interval; which of two" in caption


def test_a_point_with_a_diverged_seed_is_not_on_the_front(tmp_path: Path) -> None:
    runs = three_methods(tmp_path / "runs")
    write_run(runs / "lowrank-9", "lowrank", 9, state="diverged")
    _, caption = pareto(as_sweep(compare([str(runs)]).contenders), {"series": "contender"})
    assert "one): elas;" in caption
    assert "without diverging: lowrank;" in caption
    for name, rank in (("elas", 16), ("full", None)):
        write_run(runs / f"{name}-9", name, 9, state="diverged", config={"ffn_rank": rank})
    with pytest.raises(CannotDraw, match="every point has a diverged run"):
        pareto(as_sweep(compare([str(runs)]).contenders), {"series": "contender"})


def test_a_point_beaten_in_two_of_three_is_on_the_front() -> None:
    assert front([1, 2, 3], [1, 2, 3], [3, 2, 4]) == [0, 1]


def test_of_speed_more_is_better(tmp_path: Path) -> None:
    results = as_sweep(compare([str(three_methods(tmp_path / "runs"))]).contenders)
    figure, caption = pareto(results, {"series": "contender", "x": "tokens_per_second"})
    (ax,) = figure.axes
    assert ax.get_xlabel() == "Training speed (tokens/s), higher is better"
    assert "to the right" not in caption
