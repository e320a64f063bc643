"""Which point is the best: not the lucky one."""

from __future__ import annotations

import pytest

from elas_lightning.analysis.points import Point, best


def _point(rank: int, values: list[float], diverged: int = 0) -> Point:
    counts = {"complete": len(values), "diverged": diverged}
    return Point({"rank": rank}, dict(enumerate(values)), counts)


@pytest.mark.parametrize(
    ("points", "winner"),
    [
        ([_point(1, [99.0, 101.0, 103.0]), _point(2, [100.0, 100.0, 100.0])], 2),
        # one of three seeds is no match for three; two of three are
        ([_point(1, [90.0]), _point(2, [100.0, 100.0, 100.0])], 2),
        ([_point(1, [90.0, 92.0]), _point(2, [100.0, 100.0, 100.0])], 1),
        # half as many are too few
        ([_point(1, [90.0, 92.0]), _point(2, [100.0, 100.0, 100.0, 100.0])], 2),
        # the others of a diverged seed are the lucky ones, unless nothing else is there
        ([_point(1, [90.0, 92.0], diverged=1), _point(2, [100.0, 100.0, 100.0])], 2),
        ([_point(1, [90.0, 92.0], diverged=1), _point(2, [95.0, 96.0], diverged=1)], 1),
        ([_point(1, []), _point(2, [100.0])], 2),
    ],
)
def test_the_best_point_has_the_best_mean_of_enough_seeds(points, winner):
    assert best(points, "val_perplexity").levels["rank"] == winner


def test_more_is_better_where_it_is():
    assert best([_point(1, [5.0]), _point(2, [7.0])], "tokens_per_second").levels["rank"] == 2
    assert best([_point(1, [])], "val_loss") is None
