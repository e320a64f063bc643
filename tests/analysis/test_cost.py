"""What 2:4 costs in all parts of a document: which comparisons it is, and what the figure shows of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.colors import to_hex
from synthetic import METHODS, write_sweep
from synthetic_paper import write_paper

from elas_lightning.analysis.comparisons import comparisons, twin_comparisons
from elas_lightning.analysis.paper.cost import cost_figure
from elas_lightning.analysis.paper.load import load_paper, load_stored
from elas_lightning.analysis.style import look

STEP = {"kind": "choices", "values": ["dense", "2:4", "1:4"], "label": "sparsity"}


@pytest.fixture
def paper(tmp_path):
    return load_paper(write_paper(tmp_path))


def shown(figure):
    """Name, value, interval and colour of every row."""
    rows = []
    for ax in figure.axes:
        names = [label.get_text() for label in ax.get_yticklabels()]
        for line, _, (bars,) in ax.containers:
            (value,), (y,), (segment,) = line.get_xdata(), line.get_ydata(), bars.get_segments()
            rows.append((names[round(y)], value, (segment[0, 0], segment[1, 0]), to_hex(line.get_color())))
    return rows


def test_every_model_stands_beside_the_one_without_the_step(paper):
    figure, caption = cost_figure(paper)
    rows = shown(figure)
    # of the table those with a twin, of the sizes ELAS's; a warm-up's length is no step
    assert [name for name, *_ in rows] == ["ELAS", "ELAS + LORO", "size s", "size m", "size l", "size xl"]
    sizes = [one for one in comparisons(paper.parts["scaling"]) if one.base == "low-rank ReLU²"]
    expected = [*twin_comparisons(paper.table), *sizes]
    for (_, value, ends, _), one in zip(rows, expected, strict=True):
        assert value == pytest.approx(one.difference.value)
        assert ends == pytest.approx((one.difference.low, one.difference.high))
    assert caption.startswith("What the 2:4 step costs in 6 comparisons with the same model without it, from 2 sweeps")


def test_the_step_alone_counts_and_what_was_found_has_a_colour(tmp_path):
    def loss(point, seed):
        return 5 + {"dense": 0.0, "2:4": 0.01 + 0.001 * seed, "1:4": 0.2}[point["sparsity"]] * (point["rank"] == 4)

    search = {"sparsity": STEP, "rank": {"kind": "choices", "values": [4, 8], "label": "rank"}}
    plots = [{"kind": "bars", "x": "rank", "group": "sparsity"}]
    write_sweep(tmp_path / "steps", search, plots, loss=loss)
    figure, caption = cost_figure(load_stored(tmp_path, []))
    found, same = shown(figure)
    assert (found[0], found[3]) == ("rank 4", look(1).color.lower())
    assert (same[0], same[3]) == ("rank 8", look(0).color.lower())
    assert "in 2 comparisons with the same model without it, from 1 sweep" in caption
    assert "1 of 2 intervals leaves zero out (1 after correction for all, Holm)" in caption


def test_other_twins_are_no_models_without_the_step(tmp_path):
    search = {"method": {**METHODS, "values": ["low-rank ReLU²", "ELAS", "LORO", "CoLA"]}}
    twins = {"ELAS": "low-rank ReLU²", "LORO": "CoLA"}
    write_sweep(tmp_path / "table", search, [], twins=twins, loss=lambda p, s: 5 + 0.001 * s * len(p["method"]))
    figure, _ = cost_figure(load_stored(tmp_path, []))
    assert [name for name, *_ in shown(figure)] == ["ELAS"]


def test_many_rows_stand_in_two_columns_of_whole_parts(tmp_path):
    for i, count in enumerate((9, 6, 8)):
        ranks = {"kind": "choices", "values": [*range(4, 4 + count)], "label": "rank"}
        search = {"method": {**METHODS, "values": ["dense", "2:4"]}, "rank": ranks}
        write_sweep(tmp_path / f"part{i}", search, [{"kind": "metric_by", "x": "rank", "series": "method"}])
    paper = load_stored(tmp_path, ["part2"])
    assert list(paper.parts) == ["part2", "part0", "part1"]
    figure, _ = cost_figure(paper)
    assert [len(ax.containers) for ax in figure.axes] == [8, 15]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    one_part = replace(paper, parts={"part0": paper.parts["part0"]})
    assert len(cost_figure(one_part)[0].axes) == 1


def test_without_a_pair_there_is_no_figure(tmp_path):
    assert cost_figure(load_stored(tmp_path, [])) is None
    write_sweep(tmp_path / "single", {"sparsity": STEP}, [], seeds=(1,), loss=lambda p, s: 5.0)
    assert cost_figure(load_stored(tmp_path, [])) is None
    folder = write_sweep(tmp_path / "nats", {"sparsity": STEP}, [], loss=lambda p, s: 5.0 + 0.01 * s)
    assert cost_figure(load_stored(tmp_path, [])) is not None
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text.replace('"objective": "val_perplexity"', '"objective": "val_loss"'))
    assert cost_figure(load_stored(tmp_path, [])) is None
