"""A composite sweep on disk: a table of methods, a warm-up ablation and sizes, with effects that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import write_sweep

METHODS = ("full-rank SwiGLU", "low-rank ReLU²", "ELAS", "ELAS + LORO", "ELAS + Muon")
TWINS = {"ELAS": "low-rank ReLU²", "ELAS + LORO": "low-rank ReLU²"}
SIZES = {"s": 1e6, "m": 4e6, "l": 16e6, "xl": 64e6}
BATCHES = 32
# nats above the dense twin
EFFECTS = {"full-rank SwiGLU": 0.10, "ELAS": 0.004, "ELAS + LORO": -0.02, "ELAS + Muon": 0.02}


def method_loss(
    effects: Mapping[str, float] = EFFECTS, noise: float = 0.001
) -> Callable[[Mapping[str, Any], int], float]:
    """Loss of a method: a shift that a seed gives to all, the method's effect, and a little of its own."""

    def loss(point: Mapping[str, Any], seed: int) -> float:
        # without a mean over the seeds 1, 2 and 3, and of the other sign for a method's neighbours in the list
        own = noise * (seed - 2) * (-1) ** METHODS.index(point["method"])
        return 4.0 + 0.02 * math.sin(1.7 * seed) + effects.get(point["method"], 0.0) + own

    return loss


def size_loss(point: Mapping[str, Any], seed: int) -> float:
    """A power law with exponent 0.3 towards 3 nats; ELAS costs 0.01 at every size."""
    extra = 0.01 if point["method"] == "ELAS" else 0.0
    spread = 0.0005 * math.sin(5 * seed + len(point["size"]))
    return 3.0 + 1.2 * (SIZES[point["size"]] / 1e6) ** -0.3 + extra + spread


def write_paper(root: Path, *, galore: bool = True, table: Mapping[str, Any] | None = None) -> Path:
    """Write ``root/paper`` and its parts; the part ``placement_ablation`` is named and has no files.

    Args:
        galore: whether result files hold the GaLore protocol's number.
        table: changes to the table of methods, as arguments of ``write_sweep``.
    """
    changes = {"loss": method_loss(), "twins": TWINS, **(table or {})}
    search = {"method": {"kind": "choices", "values": list(METHODS), "label": "method"}}
    plots = [
        {"kind": "bars", "x": "method"},
        {"kind": "telemetry", "value": "dropped_energy", "filter": {"method": "ELAS"}},
    ]
    write_sweep(root / "paper_table", search, plots, question="Which method is best?", **changes)
    search = {
        "method": {"kind": "choices", "values": ["low-rank ReLU²", "ELAS"], "label": "method"},
        "size": {"kind": "choices", "values": list(SIZES), "label": "size"},
    }
    plots = [{"kind": "bars", "x": "size", "group": "method"}]
    question = "How does loss fall with size?"
    _set_sizes(write_sweep(root / "scaling", search, plots, loss=size_loss, question=question))
    search = {"warmup": {"kind": "choices", "values": [0, 20, 40], "label": "dense warm-up steps"}}
    write_sweep(
        root / "warmup_ablation",
        search,
        [{"kind": "metric_by", "x": "warmup"}],
        states={1: "diverged"},
        loss=lambda point, seed: 4.3 - 0.002 * point["warmup"] + 0.01 * seed,
        question="How long a warm-up?",
    )
    if galore:
        for path in root.glob("*/runs/*/result.json"):
            _edit(path, _measure_both_ways)
    names = ("paper_table", "warmup_ablation", "scaling", "placement_ablation")
    home = root / "paper"
    home.mkdir()
    summary = {
        "name": "paper",
        "question": "Does ELAS hold up?",
        "command": "elas sweep paper",
        "parts": [{"name": name, "folder": name} for name in names],
    }
    (home / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return home


def _set_sizes(folder: Path) -> None:
    path = folder / "trials.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    names = header.split(",")
    cells = [row.split(",") for row in rows]
    for row in cells:
        row[names.index("parameters")] = str(SIZES[row[names.index("size")]])
    path.write_text("\n".join([header, *map(",".join, cells)]) + "\n", encoding="utf-8")


def _measure_both_ways(content: dict[str, Any]) -> None:
    loss = content["metrics"].get("val_loss")
    if loss is not None:
        galore = float(np.exp(loss * BATCHES / (BATCHES + 1)))
        content["metrics"].update(val_batches=float(BATCHES), val_perplexity_galore_protocol=galore)


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
