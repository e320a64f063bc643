"""A sweep with nothing wrong in it, for tests to put something wrong into."""

from typing import Any

GRID: dict[str, Any] = {
    "question": "Does the rank matter?",
    "base": ["sizes/{size}"],
    "machines": {"cpu": {"size": "small", "data": "own"}, "gpu": {"size": "small", "data": "own"}},
    "search": {
        "method": {"overlays": {"dense": "methods/dense", "ELAS": "methods/elas"}},
        "rank": {"keys": ["model.config.ffn_rank"], "choices": [2, 4]},
    },
    "seeds": [0],
    "plots": [{"kind": "metric_by", "x": "rank", "series": "method"}],
}
