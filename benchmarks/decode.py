"""Time the FFN for one token: the ordinary op beside the one that skips rows of ``down``, at several sparsities.

The share of non-zero hidden features is set by turning rows of ``up`` away from the token; 40 % is what random
weights give after squared ReLU and 2:4, while trained squared ReLU leaves 2 to 16 % (arXiv 2503.16672).

    python benchmarks/decode.py --shape 60m 1b 7b
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import SHAPES
from measuring import machine, measure, usable_device, usual_dtype
from tune import sizes

from elas_lightning.commands.arguments import Parser, at_least_one
from elas_lightning.ops import lowrank_ffn, lowrank_ffn_decode, relu2_sparsify_24
from elas_lightning.ops.decode import DECODE_TOKENS


@torch.no_grad()
def run_case(shape: str, turned: float, options: argparse.Namespace, device: torch.device) -> str:
    """One line: the share of non-zero features, microseconds of both, and their ratio."""
    rank, features = sizes(shape)
    dtype = usual_dtype(device)
    torch.manual_seed(0)
    z, up = torch.randn(options.tokens, rank).abs(), torch.randn(features, rank) / rank**0.5
    away = torch.rand(features) < turned
    up[away] = -up[away].abs()
    z, up, down = (t.to(device, dtype) for t in (z, up, torch.randn(rank, features) / features**0.5))
    rows = down.t().contiguous()

    calls = {
        "ordinary": lambda: lowrank_ffn(z, up, down.t(), backend="reference"),
        "decode": lambda: lowrank_ffn_decode(z, up, down.t(), backend=options.backend, down_rows=rows),
    }
    seconds = measure(calls, device, options.rounds)
    share = relu2_sparsify_24(z @ up.t(), backend="reference").ne(0).float().mean().item()
    micro = {name: statistics.median(own) * 1e6 for name, own in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["ordinary"], seconds["decode"], strict=True))
    return (
        f"{shape:5} non-zero {share:6.1%}  ordinary {micro['ordinary']:7.0f} us  decode {micro['decode']:7.0f} us  "
        f"{ratio:.2f}x"
    )


def main() -> None:
    """Print a line for each shape and sparsity."""
    cuda = torch.cuda.is_available()
    parser = Parser("elas bench decode", description="Time the FFN of a single token.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES)[1:])
    parser.add_argument("--tokens", type=at_least_one, default=1, help=f"of a call, at most {DECODE_TOKENS}")
    parser.add_argument("--threads", type=at_least_one, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=at_least_one, default=40, help="measured rounds")
    parser.add_argument("--device", type=usable_device, default="cuda" if cuda else "cpu")
    parser.add_argument("--backend", default="triton" if cuda else "reference")
    options = parser.parse_args()
    if options.tokens > DECODE_TOKENS:
        parser.error(f"--tokens is {options.tokens}: give at most {DECODE_TOKENS}, beyond which nothing is skipped")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(machine(device), torch.__version__)
    for shape in options.shape:
        for turned in (0.0, 0.75, 0.93):
            print(run_case(shape, turned, options, device), flush=True)


if __name__ == "__main__":
    main()
