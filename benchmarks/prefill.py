"""Time prefill side by side: a whole prompt through the decoder, the logits of its last position, no gradients.

Weights and products are in bfloat16 on a GPU, float32 on a CPU. All contenders are in memory together and take
turns; what cannot run is reported with its reason.

    python benchmarks/prefill.py --shape 60m 1b --batch 16 --sequence 1024 --compile --json prefill.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import FULL, SHAPES, TWIN, asked_for, baselines, elas
from measuring import Record, add_options, figures, free, host_text, measure, ratios, usual_dtype
from modes import (
    COMPILED,
    Calls,
    add_compile,
    add_graphs,
    compile_blocks,
    compiled,
    drop_without_measure,
    measure_of,
    own_stream,
)

from elas_lightning.commands.arguments import Parser, at_least_one
from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.ffn import ffn_path


def prefill(model: Llama, input_ids: Tensor) -> Tensor:
    """Logits of the token after the prompt, ``(B, V)``."""
    with torch.no_grad():
        return model.lm_head(model.hidden(input_ids)[:, -1])


def compiled_prefill(model: Llama, how: str) -> Callable[[Tensor], Tensor]:
    """The prefill of one model, compiled whole or by its blocks, which changes the model."""

    def call(input_ids: Tensor) -> Tensor:
        return prefill(model, input_ids)

    if how == "whole":
        return compiled(call)
    compile_blocks(model)
    return call


def contenders(shape: str, options: argparse.Namespace) -> dict[str, ModelConfig]:
    """All that differ without gradients, or those asked for with what they are held against."""
    dense = baselines(shape, options.vocabulary, options.layers)
    everyone = {**dense, **{name: c for name, c in elas(dense[TWIN]).items() if "packed" not in name}}
    return asked_for(everyone, options.only, always=(TWIN, FULL))


def in_turns(
    calls: Calls, rows: dict[str, dict[str, Any]], plain: str, options: argparse.Namespace, record: Record
) -> list[dict[str, Any]]:
    """Time the calls and print what they took, as rows of the record."""
    device = torch.device(options.device)
    seconds = measure(calls, device, options.rounds)
    measured = []
    for (name, mode), own in seconds.items():
        found = figures(own, calls[name, mode], device, options.energy)
        took = found["seconds"]
        against = measure_of(mode, plain)
        held = {other: seconds[other, against[1]] for other in (TWIN, FULL) if (other, against[1]) in calls}
        measured.append(
            {
                "contender": name,
                "mode": mode,
                **found,
                "speed_against": {other: ratios(theirs, own) for other, theirs in held.items()},
                "share_of_matmul_peak": rows[name]["flops"] / took["median"] / record.peak,
            }
        )
        ratio = measured[-1]["speed_against"][TWIN]
        print(
            f"  {name + ', ' + mode:42}  {took['median'] * 1e3:9.2f} ms  {ratio['median']:.2f}x"
            f" ({ratio['p20']:.2f}-{ratio['p80']:.2f}) {', '.join(against)}{host_text(found)}",
            flush=True,
        )
    return measured


def run_case(shape: str, batch: int, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Measure all contenders at one shape and batch."""
    device = torch.device(options.device)
    dtype = getattr(torch, record.content["dtype"])
    torch.manual_seed(0)
    input_ids = torch.randint(options.vocabulary, (batch, options.sequence), device=device)
    rows: dict[str, dict[str, Any]] = {}
    calls: Calls = {}
    absent: list[dict[str, str]] = []
    plain = COMPILED[options.compile] if options.compile else "eager"
    for name, config in contenders(shape, options).items():
        flops = flops_per_token(config, options.sequence)
        # the head sees one position of each prompt
        row = rows.setdefault(name, {"flops": (flops["forward"] - flops["head"]) * input_ids.numel()})
        try:
            row["path"] = ffn_path(config, device)
            with device:
                model = Llama(config).to(dtype)
            prefill(model, input_ids)
        except Exception as refusal:  # one contender's fault is not to cost the figures of the others
            row["absent"] = record.reason(name, refusal)
            continue
        if not options.without_eager:
            calls[name, "eager"] = partial(prefill, model, input_ids)
        if options.compile:
            own = model if options.without_eager else deepcopy(model)
            call = partial(compiled_prefill(own, options.compile), input_ids)
            try:
                call()
            except Exception as refusal:
                reason = record.reason(f"{name}, {plain}", refusal)
                absent.append({"contender": name, "mode": plain, "reason": reason})
            else:
                calls[name, plain] = call
    measured: list[dict[str, Any]] = []
    if not options.rehearse:
        absent += drop_without_measure(calls, plain)
        if options.cuda_graph:
            absent += add_graphs(calls, plain, device)
        measured = in_turns(calls, rows, plain, options, record)
    return {
        "shape": shape,
        "layers": options.layers or SHAPES[shape][2],
        "batch": batch,
        "sequence": options.sequence,
        "twin": f"{TWIN}, {plain}",
        "contenders": rows,
        "absent": absent,
        "measured": measured,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Time prefill side by side.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, where memory is short")
    parser.add_argument("--batch", nargs="+", type=at_least_one, default=[4], help="prompts")
    parser.add_argument("--sequence", type=int, default=256, help="tokens a prompt")
    parser.add_argument("--vocabulary", type=int, default=32000)
    add_compile(parser)
    return add_options(parser, rounds=10)


def main() -> None:
    """Run the cases one after the other."""
    options = parse()
    own_stream(options)
    device = torch.device(options.device)
    record = Record("prefill", device, usual_dtype(device), options.json)
    for shape in options.shape:
        for batch in options.batch:
            print(f"{shape}, {batch} x {options.sequence} tokens")
            record.add(run_case(shape, batch, options, record))
            free(device)
    record.close()


if __name__ == "__main__":
    main()
