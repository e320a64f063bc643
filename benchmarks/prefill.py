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
from measuring import Record, add_options, free, host_text, usual_dtype
from modes import COMPILED, Calls, add_model, compile_blocks, compiled, in_turns, measure_of, own_stream

from elas_lightning.commands.arguments import Parser
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


def show(measured: list[dict[str, Any]], plain: str) -> None:
    """One case as text."""
    for row in measured:
        ratio, name = row["speed_against"][TWIN], f"{row['contender']}, {row['mode']}"
        print(
            f"  {name:42}  {row['seconds']['median'] * 1e3:9.2f} ms  {ratio['median']:.2f}x"
            f" ({ratio['p20']:.2f}-{ratio['p80']:.2f}) {TWIN}, {measure_of(row['mode'], plain)}{host_text(row)}",
            flush=True,
        )


def prepare(
    name: str, config: ModelConfig, input_ids: Tensor, plain: str, options: argparse.Namespace, record: Record
) -> tuple[dict[str, Any], Calls, list[dict[str, str]]]:
    """One contender, tried out: what is known of it, its calls, and the mode that it could not run in."""
    flops, device = flops_per_token(config, options.sequence), record.device
    # the head sees one position of each prompt
    row: dict[str, Any] = {"flops": (flops["forward"] - flops["head"]) * input_ids.numel()}
    calls: Calls = {}
    try:
        row["path"] = ffn_path(config, device)
        with device:
            model = Llama(config).to(usual_dtype(device))
        prefill(model, input_ids)
    except Exception as refusal:  # one contender's fault is not to cost the figures of the others
        return row | {"absent": record.reason(name, refusal)}, calls, []
    if not options.without_eager:
        calls[name, "eager"] = partial(prefill, model, input_ids)
    if options.compile:
        own = model if options.without_eager else deepcopy(model)
        call = partial(compiled_prefill(own, options.compile), input_ids)
        try:
            call()
        except Exception as refusal:
            reason = record.reason(f"{name}, {plain}", refusal)
            return row, calls, [{"contender": name, "mode": plain, "reason": reason}]
        calls[name, plain] = call
    return row, calls, []


def run_case(shape: str, batch: int, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Measure all contenders at one shape and batch."""
    torch.manual_seed(0)
    input_ids = torch.randint(options.vocabulary, (batch, options.sequence), device=record.device)
    rows: dict[str, dict[str, Any]] = {}
    calls: Calls = {}
    absent: list[dict[str, str]] = []
    plain = COMPILED[options.compile] if options.compile else "eager"
    for name, config in contenders(shape, options).items():
        rows[name], own, missing = prepare(name, config, input_ids, plain, options, record)
        calls |= own
        absent += missing
    measured: list[dict[str, Any]] = []
    if not options.rehearse:
        flops = {name: row["flops"] for name, row in rows.items()}
        measured, untimed = in_turns(calls, plain, (TWIN, FULL), flops, options, record)
        absent += untimed
        show(measured, plain)
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
    parser = Parser("elas bench prefill", description="Time prefill side by side.")
    add_model(parser, "prompts")
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
