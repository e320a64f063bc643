"""Figures of many contenders, with long names or odd ones, are still read."""

from __future__ import annotations

import warnings

import pytest
from synthetic import RANKS, write_sweep

from elas_lightning.analysis.load import load_sweep
from elas_lightning.analysis.plots import KINDS
from elas_lightning.analysis.style import house_style

LONG = [f"method number {i:02d} with a long name" for i in range(20)]
ODD = ["cost $5 and $6", "$_$", "a<b>&|c"]


def loss(point, seed):
    return 4.0 + 0.01 * len(str(point)) + 0.005 * sum(map(ord, point["method"])) % 0.3 + 0.02 * seed


def sweep(folder, names, **more):
    search = {"method": {"kind": "choices", "values": names, "label": "method"}, **more}
    return load_sweep(write_sweep(folder, search, [], loss=loss, seeds=(1, 2)))


def drawn(results, kind, **options):
    """The figure, after its layout was found; that none is found is only a warning of matplotlib's."""
    figure, _ = KINDS[kind](results, {"kind": kind, **options})
    with house_style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return figure


def overlapping(boxes):
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("curves", {"series": "method"}), ("pareto", {}), ("metric_by", {"x": "rank", "series": "method"})],
)
def test_twenty_series_are_named_within_the_page_and_leave_room_for_the_plot(tmp_path, kind, options):
    more = {"rank": {**RANKS, "values": [4, 8]}} if "x" in options else {}
    figure = drawn(sweep(tmp_path / "many", LONG, **more), kind, **options)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == LONG
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    assert not overlapping(boxes)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    assert all(ax.get_position().height * figure.get_figheight() > 1.2 for ax in figure.axes)


@pytest.mark.parametrize(("kind", "count"), [("metric_by", 20), ("heatmap", 6)])
def test_names_of_levels_along_x_do_not_run_into_one_another(tmp_path, kind, count):
    results = sweep(tmp_path / "many", LONG[:count], rank={**RANKS, "values": [4, 8]})
    figure = drawn(results, kind, x="method", **({"y": "rank"} if kind == "heatmap" else {}))
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == LONG[:count]
    assert not overlapping([label.get_window_extent() for label in labels])


def test_parallel_names_every_choice_of_many(tmp_path):
    (ax,) = drawn(sweep(tmp_path / "many", LONG), "parallel").axes
    named = [text for text in ax.texts if "name" in text.get_text()]
    assert len(named) == len(LONG)
    assert not overlapping([text.get_window_extent() for text in named])


def test_a_legend_of_long_names_is_not_cut_off(tmp_path):
    results = sweep(tmp_path / "many", LONG[:6], rank={**RANKS, "values": [4, 8]})
    figure = drawn(results, "bars", x="rank", group="method")
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_many_series_stay_beside_their_level_and_on_the_axis(tmp_path):
    results = sweep(tmp_path / "many", LONG, rank={**RANKS, "values": [4, 8]})
    (ax,) = drawn(results, "metric_by", x="rank", series="method").axes
    low, high = ax.get_xlim()
    for container in ax.containers:
        places = container[0].get_xdata()
        assert low < places[0] < 6 < places[1] < high


def test_names_of_many_differences_stand_apart(tmp_path):
    results = sweep(tmp_path / "many", LONG)
    results.summary["twins"] = {LONG[i]: LONG[i - 1] for i in range(1, 20)}
    labels = [[*ax.get_yticklabels()] for ax in drawn(results, "differences", x="method").axes]
    # what is beside its twin, and what is beside the first one and no twin of it
    assert [len(own) for own in labels] == [19, 18]
    assert not overlapping([label.get_window_extent() for own in labels for label in own])


@pytest.mark.parametrize("kind", ["bars", "differences", "curves", "pareto", "parallel"])
def test_names_are_no_formulas(tmp_path, kind):
    options = {"bars": {"x": "method"}, "differences": {"x": "method"}, "curves": {"series": "method"}}.get(kind, {})
    figure = drawn(sweep(tmp_path / "odd", ODD), kind, **options)
    texts = [*(text for ax in figure.axes for text in (*ax.texts, *ax.get_yticklabels()))]
    named = [text for text in texts if "$" in text.get_text()]
    assert named
    assert not any(text.get_parse_math() for text in named)
