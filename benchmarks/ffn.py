"""Time one feed-forward network side by side: full rank, low rank, and every ELAS path, eager and compiled.

Written for a GPU box with torch, triton and this checkout; it runs on a CPU, too (slowly, and as a check). Before it is
timed, every path is held against the plain one in float32; a wrong one is reported as such and has no speed. What
cannot run is reported with its reason.

    python benchmarks/ffn.py --shape 60m 350m 1b --tokens 16384 131072 --compile --json benchmarks/results/ffn.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import SHAPES, TWIN, baselines, elas
from measuring import Record, joules, measure, ratios, spread
from memory import kept_bytes

from elas_lightning.commands.arguments import Parser, usable_device
from elas_lightning.errors import UserError
from elas_lightning.nn import ModelConfig
from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.ffn import FFN, ffn_path, make_ffn

# Relative, in the Frobenius norm, against float32: 2:4 decides near ties by the last bit, so a few choices differ.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def contenders(shape: str) -> dict[str, ModelConfig]:
    """All at one shape; an FFN is all that is built of each."""
    dense = baselines(shape, layers=1)
    fused = replace(dense[TWIN], backend="triton", ffn_storage="recompute")
    return {**dense, f"{TWIN}, triton, recompute": fused, **elas(dense[TWIN])}


def forward(ffn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As in prefill."""
    with torch.no_grad():
        return ffn(x)


def train(ffn: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    """Forward and backward; gradients are thrown away."""
    out = ffn(x)
    parameters = list(getattr(ffn, "parameters", list)())
    torch.autograd.grad(out, [x, *parameters], grad)
    return out


def error(ffn: FFN, config: ModelConfig, x: Tensor) -> float:
    """Of the output against the same weights in float32 and plain PyTorch."""
    plain = make_ffn(replace(config, backend="reference", ffn_storage="dense"), 0)
    plain.to(x.device).load_state_dict(ffn.state_dict())
    with torch.no_grad():
        expected, actual = plain.float()(x.float()), ffn(x).float()
    return float((actual - expected).norm() / expected.norm())


def prepare(config: ModelConfig, x: Tensor, grad: Tensor) -> tuple[FFN | None, dict[str, Any]]:
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
        train(ffn, x, grad)
    except UserError as refusal:
        return None, row | {"absent": str(refusal)}
    except torch.OutOfMemoryError:
        return None, row | {"absent": "out of memory"}
    if not row["error"] < TOLERANCE[x.dtype]:
        return None, row | {"absent": f"wrong: error {row['error']:.2g} is above {TOLERANCE[x.dtype]:.2g}"}
    return ffn, row


def run_case(shape: str, tokens: int, options: argparse.Namespace, x: Tensor, peak: float) -> dict[str, Any]:
    """Measure all contenders at one shape and number of tokens."""
    grad = torch.randn_like(x)
    rows: dict[str, dict[str, Any]] = {}
    ways: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    for name, config in contenders(shape).items():
        ffn, rows[name] = prepare(config, x, grad)
        if ffn is None:
            continue
        ways[name, "eager"] = ffn
        if options.compile:
            ways[name, "compiled"] = torch.compile(ffn)
        if options.autotune and name == TWIN:
            ways[name, "max-autotune"] = torch.compile(ffn, mode="max-autotune-no-cudagraphs")
    against = (TWIN, "compiled" if options.compile else "eager")
    measured = []
    for kind, products in (("forward", 1), ("forward_backward", 3)):
        call = forward if kind == "forward" else lambda way, x: train(way, x, grad)
        calls = {key: (lambda way=way, call=call: call(way, x)) for key, way in ways.items()}
        seconds = measure(calls, x.device, options.rounds)  # type: ignore[arg-type]
        for (name, mode), own in seconds.items():  # type: ignore[misc]
            took = spread(own)
            flops = products * tokens * rows[name]["flops_per_token"]
            measured.append(
                {
                    "kind": kind,
                    "contender": name,
                    "mode": mode,
                    "seconds": took,
                    "speed_against": {TWIN: ratios(seconds[against], own)},  # type: ignore[index]
                    "share_of_matmul_peak": flops / took["median"] / peak,
                    "joules": joules(calls[name, mode], x.device),
                }
            )
    return {
        "shape": shape,
        "tokens": tokens,
        "twin": ", ".join(against),
        "contenders": rows,
        "measured": measured,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Time one feed-forward network side by side.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096])
    parser.add_argument("--compile", action="store_true", help="time torch.compile'd forms, too")
    parser.add_argument("--autotune", action="store_true", help="and the twin under max-autotune")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds")
    parser.add_argument(
        "--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--json", type=Path, help="where to write the record, after every case")
    options = parser.parse_args()
    if options.rounds < 2 or min(options.tokens) < 1:
        parser.error("--rounds must be at least 2 (percentiles need a spread), --tokens at least 1")
    return options


def show(case: dict[str, Any]) -> None:
    """One case as text."""
    print(f"{case['shape']}, {case['tokens']} tokens, against: {case['twin']}")
    for name, row in case["contenders"].items():
        said = row.get("absent") or f"{row['kept_bytes'] / 2**20:.1f} MiB kept for backward; {row['path']}"
        print(f"  {name}: {said}")
    for row in case["measured"]:
        ratio, name = row["speed_against"][TWIN], f"{row['contender']}, {row['mode']}"
        print(
            f"  {row['kind']:16}  {name:42}  {row['seconds']['median'] * 1e6:10.0f} us"
            f"  {ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
        )


def main() -> None:
    """Run the cases one after the other."""
    options = parse()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    record = Record("ffn", device, dtype, options.json)
    for shape in options.shape:
        for tokens in options.tokens:
            torch.manual_seed(0)
            x = torch.randn(tokens, SHAPES[shape][0], device=device, dtype=dtype, requires_grad=True)
            case = run_case(shape, tokens, options, x, record.content["matmul_peak_flops"])
            show(case)
            record.add(case)


if __name__ == "__main__":
    main()
