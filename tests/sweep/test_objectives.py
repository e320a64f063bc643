"""What a point comes to: the mean over its seeds, and the worst there is where a figure is missing."""

from math import inf
from typing import Any

import pytest

from elas_lightning.sweep.objectives import OBJECTIVES, Objective, values_of

LOOKED_AT = [Objective(name, OBJECTIVES[name]) for name in ("val_perplexity", "tokens_per_second", "parameters")]


def run(perplexity: float | None, speed: float | None, parameters: int = 100) -> dict[str, Any]:
    return {"val_perplexity": perplexity, "tokens_per_second": speed, "parameters": parameters, "seconds": 1.0}


def test_the_mean_over_seeds_of_each() -> None:
    assert values_of(LOOKED_AT, [run(4.0, 10.0), run(6.0, 30.0)]) == [5.0, 20.0, 100.0]
    assert values_of(LOOKED_AT[1:2], [run(4.0, 10.0)]) == [10.0]


@pytest.mark.parametrize("missing", [run(None, 30.0), run(6.0, None), {"seconds": 1.0}])
def test_a_figure_that_one_seed_lacks_makes_the_point_the_worst_in_all(missing: dict[str, Any]) -> None:
    assert values_of(LOOKED_AT, [run(4.0, 10.0), missing]) == [inf, -inf, inf]


def test_a_figure_that_is_not_looked_at_may_be_missing() -> None:
    assert values_of(LOOKED_AT[:1], [run(4.0, None)]) == [4.0]


@pytest.mark.parametrize(("name", "good", "bad"), [("val_loss", 1.0, 2.0), ("tokens_per_second", 2.0, 1.0)])
def test_which_way_is_better(name: str, good: float, bad: float) -> None:
    objective = Objective(name, OBJECTIVES[name])
    assert objective.is_better(good, bad)
    assert not objective.is_better(bad, good)
    assert not objective.is_better(good, good)
    assert objective.is_better(bad, objective.worst)
