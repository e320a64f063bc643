"""Account for the memory of a training step at the paper's sizes, with and without checkpointing, by batch and length.

Nothing is measured and nothing is built: ``elas_lightning.nn.account`` works it out from the configuration, held to
2 % against PyTorch by the tests. AdamW, bfloat16 autocast on a GPU. For what a device really allocates: train_step.py.

    python benchmarks/memory_account.py --json benchmarks/results/memory_account.json
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import SHAPES, STORAGES, TWIN, baselines, elas

from elas_lightning.commands.arguments import Parser
from elas_lightning.files import make_room, write_whole
from elas_lightning.nn.account import TrainingStep, count_parameters, memory_account

# sequences and their length: the paper's three batches, and the largest as few long sequences
SETTINGS = ((1, 256), (32, 256), (128, 256), (8, 4096))
ENTRIES_A_PARAMETER = 2  # of AdamW


def rows(shape: str) -> list[dict[str, Any]]:
    """Every contender in every setting."""
    dense = baselines(shape)
    sparse = elas(dense[TWIN])
    everyone = {**dense, f"{TWIN}, recompute": replace(dense[TWIN], ffn_storage="recompute")}
    everyone |= {f"ELAS, {storage}": sparse[f"ELAS, reference, {storage}"] for storage in STORAGES}
    found = []
    for name, config in everyone.items():
        remembered = ENTRIES_A_PARAMETER * count_parameters(config)["total"]
        for batch, sequence in SETTINGS:
            for checkpointing in ("none", "block"):
                step = TrainingStep(batch, sequence, "bf16-mixed", "cuda", checkpointing)  # type: ignore[arg-type]
                account = memory_account(config, step, remembered)
                found.append(
                    {
                        "shape": shape,
                        "contender": name,
                        "batch": batch,
                        "sequence": sequence,
                        "checkpointing": checkpointing,
                        "bytes": {part: size for part, size in account.items() if isinstance(size, int)},
                    }
                )
    return found


def main() -> None:
    """Print the totals and write the record."""
    parser = Parser("elas bench memory-account", description="Account for the memory of a training step.")
    sizes = [shape for shape in SHAPES if shape != "smoke"]
    parser.add_argument("--shape", nargs="+", choices=sizes, default=sizes)
    parser.add_argument("--json", type=Path, help="where to write the record")
    options = parser.parse_args()
    if options.json:
        make_room(options.json, "--json")
    found = [row for shape in options.shape for row in rows(shape)]
    for row in found:
        kept, total = (row["bytes"][part] / 1e9 for part in ("activations", "total"))
        where = f"{row['shape']:5} {row['batch']:4} x {row['sequence']:<5} {row['checkpointing']:5}"
        print(f"{where}  {row['contender']:28}  kept {kept:8.2f} GB  at most {total:8.2f} GB")
    if options.json:
        record = {
            "benchmark": "memory_account",
            "command": shlex.join(["python", *sys.argv]),
            "precision": "bf16-mixed",
            "optimizer": "adamw",
            "rows": found,
        }
        write_whole(options.json, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
