"""Write sweeps whose true effects are known, in the files a real sweep leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from elas_lightning.trials_table import METRICS, STATES, columns

STEPS = tuple(range(0, 401, 20))


def rank_method_loss(point: Mapping[str, Any], seed: int) -> float:
    """True effects: every doubling of the rank saves 0.1 nats, ELAS costs 0.01, a seed shifts both alike."""
    shift = 0.02 * np.sin(1.7 * seed + 0.3)
    noise = 0.002 * np.sin(11.0 * seed + 3.0 * float(point.get("rank", 1)) + len(str(point.get("method", ""))))
    extra = 0.01 if point.get("method") == "elas" else 0.0
    return float(5.4 - 0.1 * np.log2(float(point.get("rank", 4)) / 4) + extra + shift + noise)


def write_sweep(
    folder: Path,
    search: Mapping[str, Mapping[str, Any]],
    plots: Sequence[Mapping[str, Any]],
    *,
    points: Iterable[Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    loss: Callable[[Mapping[str, Any], int], float] = rank_method_loss,
    states: Mapping[int, str] | None = None,
    planned: int | None = None,
    stop_after: int | None = None,
    importances: Mapping[str, float] | None = None,
    twins: Mapping[str, str] | None = None,
    question: str = "How does validation perplexity depend on the rank, with and without 2:4 sparsity?",
) -> Path:
    """Write a sweep.

    Args:
        states: state by running number of the run, for runs that did not complete.
        stop_after: number of runs written, as if the sweep had been stopped then.
    """
    folder.mkdir(parents=True)
    if points is None:
        points = [dict(zip(search, values, strict=True)) for values in product(*(s["values"] for s in search.values()))]
    todo = [(trial, point, seed) for trial, point in enumerate(points) for seed in seeds]
    rows = []
    for number, (trial, point, seed) in enumerate(todo[:stop_after]):
        state = (states or {}).get(number, "complete")
        run = f"{trial:03d}-seed{seed}"
        rows.append(_write_run(folder / "runs" / run, trial, point, seed, state, loss(point, seed)))
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(search))
        writer.writeheader()
        writer.writerows(rows)
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    summary = {
        "name": folder.name,
        "question": question,
        "command": f"make sweep EXP={folder.name}",
        "size": "tiny",
        "data": {
            "source": "tinystories",
            "fingerprint": "1f2e3d4c5b6a",
            "tokenizer": "byte-bpe-2048",
            "unigram_perplexity": 471.3,
        },
        "sampler": "grid",
        "search": search,
        "seeds": list(seeds),
        "plots": list(plots),
        "twins": dict(twins or {}),
        "environment": {
            "hardware": "2-core CPU, 8 GB",
            "python": "3.11.7",
            "versions": {"torch": "2.13.0", "lightning": "2.6.6", "elas-lightning": "0.1.0"},
        },
        "runs": {"planned": planned or len(todo), **counts},
        "seconds": 31.5 * len(rows),
        "objective": "val_perplexity",
        "importances": importances,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _write_run(home: Path, trial: int, point: Mapping[str, Any], seed: int, state: str, loss: float) -> dict[str, Any]:
    home.mkdir(parents=True)
    metrics: dict[str, Any] = dict.fromkeys(METRICS)
    rank = point.get("rank") if isinstance(point.get("rank"), int) else 16
    last = STEPS[-1] if state == "complete" else STEPS[len(STEPS) // 3]
    if state == "complete":
        metrics = {
            "val_loss": loss,
            "val_perplexity": float(np.exp(loss)),
            "val_bits_per_byte": loss / np.log(2) / 3.4,
            "tokens": 819200,
            "seconds": 30.0 + seed,
            "tokens_per_second": 819200 / (30.0 + seed),
            "parameters": 900_000 + 12_000 * rank,
            "flops_per_token": 6 * (700_000 + 12_000 * rank),
            "peak_memory_bytes": 61_000_000 + 90_000 * rank,
        }
    _write_curve(home / "curve.csv", loss, seed, last, state)
    _write_telemetry(home / "telemetry.csv", seed, last)
    result = {
        "run": home.name,
        "state": state,
        "reason": None if state == "complete" else f"loss became nan at step {last}",
        "seed": seed,
        "config": {},
        "overlays": [],
        "overrides": dict(point),
        "metrics": metrics,
        "backend": {"requested": "auto", "chosen": "reference", "why": "no CUDA device"},
        "data": {"source": "tinystories"},
        "environment": {
            "hardware": "2-core CPU, 8 GB",
            "python": "3.11.7",
            "versions": {"torch": "2.13.0"},
            "command": f"elas fit --seed_everything={seed}",
        },
        "started": "2026-05-01T10:00:00+00:00",
        "finished": f"2026-05-01T10:00:{30 + seed % 20}+00:00",
    }
    (home / "result.json").write_text(json.dumps(result), encoding="utf-8")
    cells = {name: "None" if value is None else value for name, value in point.items()}
    return {"trial": trial, "seed": seed, "state": state, **cells, **metrics, "run": home.name}


def _write_curve(path: Path, loss: float, seed: int, last: int, state: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        losses = ("train_loss", "val_loss", "val_perplexity", "val_bits_per_byte")
        writer.writerow(["step", "tokens", "seconds", *losses, "lr", "tokens_per_second"])
        for step in (s for s in STEPS if s <= last):
            now = loss + 2.2 * np.exp(-step / 70) + 0.004 * np.sin(seed + step) * (step < STEPS[-1])
            if state == "diverged":
                now += 2.0 * (step / last) ** 2
            writer.writerow([step, step * 2048, step * 0.075, now - 0.03, "", "", "", 0.01, 27000])
            writer.writerow([step, step * 2048, step * 0.075, "", now, np.exp(now), now / 2.36, "", ""])


def _write_telemetry(path: Path, seed: int, last: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "layer", "site", "natural_zeros", "dropped_energy", "dropped_nonzeros"])
        for step, layer in product(range(0, last + 1, 50), range(4)):
            zeros = 0.5 + (0.25 + 0.04 * layer) * (1 - np.exp(-step / 120)) + 0.003 * np.sin(seed + layer)
            energy = 0.06 * np.exp(-step / 150) * (1 - 0.1 * layer) + 0.012 - 0.002 * layer
            writer.writerow([step, layer, "ffn_hidden", zeros, energy, 0.4 * (1 - zeros)])


RANKS = {"kind": "choices", "values": [4, 8, 16, 32], "label": "rank"}
METHODS = {"kind": "choices", "values": ["lowrank", "elas"], "label": "method"}
RANK_PLOTS = (
    {"kind": "metric_by", "x": "rank", "series": "method", "log_x": True},
    {"kind": "curves", "series": "method"},
    {"kind": "telemetry", "value": "natural_zeros", "filter": {"method": "elas"}},
)


def rank_sweep(folder: Path, **changes: Any) -> Path:
    """Four ranks by two methods by three seeds, all complete unless changed."""
    return write_sweep(folder, {"rank": RANKS, "method": METHODS}, changes.pop("plots", RANK_PLOTS), **changes)
