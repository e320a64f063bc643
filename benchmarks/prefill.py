"""Time prefill side by side: a whole prompt through the decoder, the logits of its last position, no gradients.

Weights and products are in bfloat16 on a GPU, float32 on a CPU. All contenders are in memory together and take
turns; what cannot run is reported with its reason.

    python benchmarks/prefill.py --shape 60m 1b --batch 16 --sequence 1024 --compile --json prefill.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import FULL, SHAPES, TWIN, baselines, elas
from measuring import Record, joules, measure, ratios, spread

from elas_lightning.commands.arguments import Parser, usable_device
from elas_lightning.errors import UserError
from elas_lightning.nn import Llama
from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.ffn import ffn_path


def prefill(model: Llama, input_ids: Tensor) -> Tensor:
    """Logits of the token after the prompt, ``(B, V)``."""
    with torch.no_grad():
        return model.lm_head(model.hidden(input_ids)[:, -1])


def run_case(shape: str, batch: int, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Measure all contenders at one shape and batch."""
    device = torch.device(options.device)
    dtype = getattr(torch, record.content["dtype"])
    torch.manual_seed(0)
    input_ids = torch.randint(options.vocabulary, (batch, options.sequence), device=device)
    dense = baselines(shape, options.vocabulary, options.layers)
    everyone = {**dense, **{name: c for name, c in elas(dense[TWIN]).items() if "packed" not in name}}
    rows: dict[str, dict[str, Any]] = {}
    ways: dict[tuple[str, str], Callable[[Llama, Tensor], Tensor]] = {}
    models: dict[str, Llama] = {}
    for name, config in everyone.items():
        flops = flops_per_token(config, options.sequence)
        # the head sees one position of each prompt
        row = rows.setdefault(name, {"flops": (flops["forward"] - flops["head"]) * input_ids.numel()})
        try:
            row["path"] = ffn_path(config, device)
            with device:
                models[name] = Llama(config).to(dtype)
            prefill(models[name], input_ids)
        except UserError as refusal:
            row["absent"] = str(refusal)
            models.pop(name, None)
            continue
        except torch.OutOfMemoryError:
            row["absent"] = "out of memory"
            models.pop(name, None)
            continue
        ways[name, "eager"] = prefill
        if options.compile:
            ways[name, "compiled"] = torch.compile(prefill)
    calls = {key: (lambda key=key, way=way: way(models[key[0]], input_ids)) for key, way in ways.items()}
    seconds = measure(calls, device, options.rounds)  # type: ignore[arg-type]
    mode = "compiled" if options.compile else "eager"
    measured = []
    for (name, how), own in seconds.items():  # type: ignore[misc]
        took = spread(own)
        measured.append(
            {
                "contender": name,
                "mode": how,
                "seconds": took,
                "tokens_per_second": input_ids.numel() / took["median"],
                "speed_against": {
                    other: ratios(seconds[other, mode], own)  # type: ignore[index]
                    for other in (TWIN, FULL)
                    if other in models
                },
                "share_of_matmul_peak": rows[name]["flops"]
                / took["median"]
                / record.content["matmul_peak_flops"],
                "joules": joules(calls[name, how], device),  # type: ignore[arg-type]
            }
        )
        against = measured[-1]["speed_against"][TWIN]
        print(
            f"  {name + ', ' + how:42}  {took['median'] * 1e3:9.2f} ms  {against['median']:.2f}x"
            f" ({against['p20']:.2f}-{against['p80']:.2f}) {TWIN}, {mode}",
            flush=True,
        )
    return {
        "shape": shape,
        "layers": dense[TWIN].num_layers,
        "batch": batch,
        "sequence": options.sequence,
        "twin": f"{TWIN}, {mode}",
        "contenders": rows,
        "measured": measured,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Time prefill side by side.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, where memory is short")
    parser.add_argument("--batch", nargs="+", type=int, default=[4], help="prompts")
    parser.add_argument("--sequence", type=int, default=256, help="tokens a prompt")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--compile", action="store_true", help="time torch.compile'd forms, too")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds")
    parser.add_argument(
        "--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--json", type=Path, help="where to write the record, after every case")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2 (percentiles need a spread)")
    return options


def main() -> None:
    """Run the cases one after the other."""
    options = parse()
    device = torch.device(options.device)
    record = Record(
        "prefill", device, torch.bfloat16 if device.type == "cuda" else torch.float32, options.json
    )
    for shape in options.shape:
        for batch in options.batch:
            print(f"{shape}, {batch} x {options.sequence} tokens")
            record.add(run_case(shape, batch, options, record))


if __name__ == "__main__":
    main()
