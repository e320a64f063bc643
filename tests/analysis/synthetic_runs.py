"""Write single runs whose true effects are known, in the files a real run leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np


def write_run(
    folder: Path,
    method: str = "elas",
    seed: int = 0,
    *,
    loss: float = 4.0,
    state: str = "complete",
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    backend: str = "reference",
    **metrics: Any,
) -> Path:
    """A run of three validations; ``config`` is laid over the model's configuration."""
    folder.mkdir(parents=True)
    complete = state == "complete"
    measured = {
        "val_loss": loss,
        "val_perplexity": float(np.exp(loss)),
        "val_bits_per_byte": loss / 2.36,
        "tokens": 1_000_000 + seed,
        "seconds": 50.0,
        "tokens_per_second": 20_000.0 + 100 * seed,
        "parameters": 560_000,
        "flops_per_token": 1_850_000,
        "peak_memory_bytes": 900_000_000 + 1_000_000 * seed,
        **metrics,
    }
    result = {
        "run": folder.name,
        "state": state,
        "reason": None if complete else "the training loss is nan at step 7",
        "seed": seed,
        "config": {
            "seed_everything": seed,
            "model": {"config": {"ffn": "relu2", "ffn_rank": 16, "method": method, **(config or {})}},
            "data": {"seed": seed, "cache_dir": None},
            "trainer": {"max_steps": 60, "default_root_dir": str(folder)},
            "checkpoint": {"every_n_train_steps": 100 + seed},
        },
        "overlays": [],
        "overrides": {},
        "metrics": {name: value if complete else None for name, value in measured.items()},
        "backend": {"requested": "auto", "chosen": backend, "why": "test"},
        "data": {
            "source": "pydocs",
            "fingerprint": "f00d",
            "tokenizer": "bpe (beef)",
            "sequence_length": 32,
            "batching": "truncate",
            "validation_tokens": 32768,
            **(data or {}),
        },
        "environment": {
            "hardware": "AMD EPYC, 2 threads",
            "precision": "32-true",
            "world_size": 1,
            "versions": {"torch": "2.13.0"},
            "command": f"elas fit --config sizes/tiny.yaml --config methods/{method}.yaml --seed_everything={seed} "
            f"--data.seed={seed} --trainer.default_root_dir={folder}",
            **(environment or {}),
        },
        "started": "2026-05-01T10:00:00+00:00",
        "finished": f"2026-05-01T10:01:{seed:02d}+00:00",
    }
    (folder / "result.json").write_text(json.dumps(result))
    _write_progress(folder, loss)
    return folder


def _write_progress(folder: Path, loss: float) -> None:
    with (folder / "curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "seconds", "train_loss", "val_loss", "lr"])
        for step in (20, 40, 60):
            now = loss + 2 * np.exp(-step / 20)
            writer.writerow([step, step * 1000, step * 0.1, now - 0.1, "", 0.01])
            writer.writerow([step, step * 1000, step * 0.1, "", now, ""])
    with (folder / "telemetry.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "layer", "site", "natural_zeros", "dropped_energy", "dropped_nonzeros"])
        for step in (20, 40, 60):
            for layer in (0, 1):
                writer.writerow([step, layer, "ffn_hidden", 0.5 + step / 500 + layer / 50, 0.02, 0.2])


def three_methods(home: Path) -> Path:
    """Full rank, low rank and ELAS, three seeds each; a seed shifts all alike, ELAS costs 0.01 nats."""
    for seed, shift in enumerate((0.0, 0.06, -0.03)):
        small = 0.001 * seed
        write_run(
            home / f"full-{seed}",
            "full",
            seed,
            loss=4.1 + shift,
            config={"ffn_rank": None},
            parameters=620_000,
            flops_per_token=2_200_000,
        )
        write_run(home / f"lowrank-{seed}", "lowrank", seed, loss=4.0 + shift)
        write_run(home / f"elas-{seed}", "elas", seed, loss=4.01 + shift + small)
    return home
