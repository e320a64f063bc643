"""Time one feed-forward network side by side: full rank, low rank, and every ELAS path, eager and compiled.

Written for a GPU box with torch, triton and this checkout; it runs on a CPU, too (slowly, and as a check). Before it is
timed, every path is held against the plain one in float32; a wrong one is reported as such and has no speed. What
cannot run is reported with its reason.

    python benchmarks/ffn.py --shape 60m 350m 1b --tokens 16384 131072 --compile --cuda-graph --json ffn.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import SHAPES, TWIN, asked_for, baselines, elas
from measuring import Record, add_options, free, host_text, usual_dtype
from memory import kept_bytes
from modes import Calls, compiled, in_turns, own_stream

from elas_lightning.commands.arguments import Parser, at_least_one
from elas_lightning.nn import ModelConfig
from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.ffn import FFN, ffn_path, make_ffn

# Relative, in the Frobenius norm, against float32: 2:4 decides near ties by the last bit, so a few choices differ.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

# Matrix products of the size of a forward pass that each kind of call takes.
KINDS = {"forward": 1, "forward_backward": 3}
# Tokens at either end that are held against float32: a kernel may go wrong where offsets pass 2^31 alone.
CHECKED_TOKENS = 2048

Way = Callable[[Tensor], Tensor]
Rows = dict[str, dict[str, Any]]


def contenders(shape: str, only: list[str] | None) -> dict[str, ModelConfig]:
    """All at one shape, or the twin and those whose names contain a part of ``only``; of each, an FFN is built."""
    dense = baselines(shape, layers=1)
    fused = replace(dense[TWIN], backend="triton", ffn_storage="recompute")
    return asked_for({**dense, f"{TWIN}, triton, recompute": fused, **elas(dense[TWIN])}, only, always=(TWIN,))


def forward(way: Way, x: Tensor) -> Tensor:
    """As in prefill."""
    with torch.no_grad():
        return way(x)


def train(way: Way, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the gradients of the first input, which is ``x``, and of the weights."""
    return torch.autograd.grad(way(inputs[0]), inputs, grad)


def error(ffn: FFN, config: ModelConfig, x: Tensor) -> float:
    """Of the output of all tokens, first and last looked at, against the same weights in float32 and plain PyTorch."""
    plain = make_ffn(replace(config, backend="reference", ffn_storage="dense"), 0)
    plain.to(x.device).load_state_dict(ffn.state_dict())

    def ends(tokens: Tensor) -> Tensor:
        return torch.cat((tokens[:CHECKED_TOKENS], tokens[CHECKED_TOKENS:][-CHECKED_TOKENS:])).float()

    with torch.no_grad():
        expected, actual = plain.float()(ends(x)), ends(ffn(x))
    return float((actual - expected).norm() / expected.norm())


def prepare(
    name: str, config: ModelConfig, x: Tensor, grad: Tensor, record: Record
) -> tuple[FFN | None, dict[str, Any]]:
    """One contender, tried out, and what is known of it; none where it cannot run or is wrong."""
    row: dict[str, Any] = {"flops_per_token": flops_per_token(config, 1)["ffn"]}
    try:
        row["path"] = ffn_path(config, x.device)
        torch.manual_seed(1)
        ffn = make_ffn(config, 0).to(x.device, x.dtype)
        for parameter in ffn.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        row["error"] = error(ffn, config, x)
        _, row["kept_bytes"] = kept_bytes(lambda: ffn(x), [x, *ffn.parameters()])
        train(ffn, [x, *ffn.parameters()], grad)
    except Exception as refusal:  # one contender's fault is not to cost the figures of the others
        return None, row | {"absent": record.reason(name, refusal)}
    if not row["error"] < TOLERANCE[x.dtype]:
        return None, row | {"absent": f"wrong: error {row['error']:.2g} is above {TOLERANCE[x.dtype]:.2g}"}
    return ffn, row


def modes(name: str, ffn: FFN, options: argparse.Namespace) -> dict[str, Way]:
    """The network in each mode asked for; asked anew for each kind of call, so that none is compiled twice."""

    def call(x: Tensor) -> Tensor:
        return ffn(x)

    found: dict[str, Way] = {} if options.without_eager else {"eager": ffn}
    if options.compile:
        found["compiled"] = compiled(call)
    if options.autotune and name == TWIN:
        found["max-autotune"] = compiled(call, mode="max-autotune-no-cudagraphs")
    return found


def try_out(
    kind: str,
    networks: dict[str, FFN],
    x: Tensor,
    grad: Tensor,
    rows: Rows,
    options: argparse.Namespace,
    record: Record,
) -> tuple[Calls, list[dict[str, str]]]:
    """The calls of one kind that run here, each called once, and who is absent from them; adds to what is known."""
    calls: Calls = {}
    absent = []
    for name, ffn in networks.items():
        inputs = [x, *ffn.parameters()]
        for mode, way in modes(name, ffn, options).items():
            call = partial(forward, way, x) if kind == "forward" else partial(train, way, inputs, grad)
            try:
                call()
                if kind == "forward_backward" and mode == "compiled":
                    # the output would keep its activations in memory, and autograd's idea of the leaves' stream
                    rows[name]["kept_bytes_compiled"] = kept_bytes(partial(way, x), inputs)[1]
            except Exception as refusal:
                absent.append({"contender": name, "mode": mode, "reason": record.reason(f"{name}, {mode}", refusal)})
            else:
                calls[name, mode] = call
    return calls, absent


def run_case(shape: str, tokens: int, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Measure all contenders at one shape and number of tokens."""
    torch.manual_seed(0)
    dtype = usual_dtype(record.device)
    x = torch.randn(tokens, SHAPES[shape][0], device=record.device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    rows: Rows = {}
    networks: dict[str, FFN] = {}
    for name, config in contenders(shape, options.only).items():
        ffn, rows[name] = prepare(name, config, x, grad, record)
        if ffn is not None:
            networks[name] = ffn
    plain = "compiled" if options.compile else "eager"
    absent: list[dict[str, str]] = []
    measured: list[dict[str, Any]] = []
    for kind, products in KINDS.items():
        calls, missing = try_out(kind, networks, x, grad, rows, options, record)
        absent += [{"kind": kind, **row} for row in missing]
        if not options.rehearse:
            flops = {name: products * tokens * row["flops_per_token"] for name, row in rows.items()}
            timed, untimed = in_turns(calls, plain, (TWIN,), flops, options, record)
            measured += [{"kind": kind, **row} for row in timed]
            absent += [{"kind": kind, **row} for row in untimed]
    for row in rows.values():
        for kept in ("kept_bytes", "kept_bytes_compiled"):
            if kept in row and kept in rows[TWIN]:
                row[kept.replace("bytes", "against")] = {TWIN: row[kept] / rows[TWIN][kept]}
    return {
        "shape": shape,
        "tokens": tokens,
        "twin": f"{TWIN}, {plain}",
        "contenders": rows,
        "absent": absent,
        "measured": measured,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser("elas bench ffn", description="Time one feed-forward network side by side.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--tokens", nargs="+", type=at_least_one, default=[4096])
    parser.add_argument("--compile", action="store_true", help="time torch.compile'd forms, too")
    parser.add_argument("--autotune", action="store_true", help="the twin under max-autotune, too")
    return add_options(parser, rounds=15)


def show(case: dict[str, Any]) -> None:
    """One case as text."""
    print(f"{case['shape']}, {case['tokens']} tokens, against: {case['twin']}")
    for name, row in case["contenders"].items():
        said = row.get("absent") or f"{row['kept_bytes'] / 2**20:.1f} MiB kept for backward; {row['path']}"
        print(f"  {name}: {said}")
    for row in case["absent"]:
        print(f"  {row['kind']:16}  {row['contender']}, {row['mode']}: {row['reason']}")
    for row in case["measured"]:
        ratio, name = row["speed_against"][TWIN], f"{row['contender']}, {row['mode']}"
        print(
            f"  {row['kind']:16}  {name:42}  {row['seconds']['median'] * 1e6:10.0f} us"
            f"  {ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f}){host_text(row)}"
        )


def main() -> None:
    """Run the cases one after the other."""
    options = parse()
    own_stream(options)
    device = torch.device(options.device)
    record = Record("ffn", device, usual_dtype(device), options.json)
    for tokens in options.tokens:
        for shape in options.shape:
            case = run_case(shape, tokens, options, record)
            free(device)
            show(case)
            record.add(case)
    record.close()


if __name__ == "__main__":
    main()
