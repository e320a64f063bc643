"""Time one feed-forward network side by side: full rank, low rank, and every ELAS path, eager and compiled.

Written for a GPU box with torch, triton and this checkout; it runs on a CPU, too (slowly, and as a check). The
contenders take turns as in ``train_step.py``. Before it is timed, every path is held against the plain one in
float32; a wrong one is reported as such and has no speed. What cannot run is reported with its reason.

    python benchmarks/ffn.py --shape 60m 350m 1b --tokens 16384 131072 --compile --json benchmarks/results/ffn.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_step import measure, processor, spread

from elas_lightning.errors import UserError
from elas_lightning.nn import ModelConfig, SparsityConfig
from elas_lightning.nn.ffn import FFN, ffn_path, make_ffn

# name: width, SwiGLU width, rank (ELAS, arXiv 2605.03667; 3B and 7B as in GaLore's family); smoke tries the script
SHAPES = {
    "smoke": (32, 48, 8),
    "60m": (512, 1376, 128),
    "130m": (768, 2048, 256),
    "350m": (1024, 2736, 256),
    "1b": (2048, 5461, 512),
    "7b": (4096, 11008, 1024),
}
TWIN = "low-rank relu2"
# Relative, in the Frobenius norm, against float32: 2:4 decides near ties by the last bit, so a few choices differ.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def configs(shape: str) -> dict[str, ModelConfig]:
    """The contenders at one shape; an FFN is all that is built of each."""
    width, intermediate, rank = SHAPES[shape]
    full: dict[str, Any] = {"hidden_size": width, "intermediate_size": intermediate, "num_layers": 1}
    low = {**full, "attention_rank": rank, "ffn_rank": rank}
    elas = {**low, "ffn": "relu2", "sparsity": SparsityConfig(("ffn_hidden",))}
    found = {
        "full-rank swiglu": ModelConfig(**full),
        "full-rank relu2": ModelConfig(**full, ffn="relu2"),
        "low-rank swiglu": ModelConfig(**low),
        TWIN: ModelConfig(**low, ffn="relu2"),
        f"{TWIN} triton recompute": ModelConfig(
            **low, ffn="relu2", backend="triton", ffn_storage="recompute"
        ),
    }
    for backend in ("reference", "triton"):
        for storage in ("dense", "packed", "recompute"):
            found[f"elas {backend} {storage}"] = ModelConfig(**elas, backend=backend, ffn_storage=storage)  # type: ignore[arg-type]
    for backend, storage in (
        ("cusparselt", "packed"),
        ("cusparselt", "recompute"),
        ("cusparselt_compress", "recompute"),
    ):
        found[f"elas {backend} {storage}"] = ModelConfig(**elas, backend=backend, ffn_storage=storage)  # type: ignore[arg-type]
    return found


def kept_bytes(ffn: FFN, x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, without parameters and the input."""
    known = {t.untyped_storage().data_ptr() for t in (x, *ffn.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        ffn(x)
    return sum(kept.values())


def train(ffn: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    """Forward and backward; gradients are thrown away."""
    out = ffn(x)
    parameters = list(getattr(ffn, "parameters", list)())
    torch.autograd.grad(out, [x, *parameters], grad)
    return out


def error(ffn: FFN, config: ModelConfig, x: Tensor) -> float:
    """Of the output against the same weights in float32 and plain PyTorch."""
    plain = make_ffn(ModelConfig(**{**vars(config), "backend": "reference", "ffn_storage": "dense"}), 0)
    plain.to(x.device).load_state_dict(ffn.state_dict())
    with torch.no_grad():
        expected, actual = plain.float()(x.float()), ffn(x).float()
    return float((actual - expected).norm() / expected.norm())


def run_case(shape: str, tokens: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure all contenders at one shape and number of tokens."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = SHAPES[shape][0]
    torch.manual_seed(0)
    x = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    rows: dict[str, dict[str, Any]] = {}
    forward: dict[str, Callable[[], None]] = {}
    both: dict[str, Callable[[], None]] = {}

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def step() -> None:
            for _ in range(options.repeat):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return step

    def inference(ffn: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return ffn(x)

    for name, config in configs(shape).items():
        row = rows.setdefault(name, {})
        try:
            row["path"] = ffn_path(config, device)
            torch.manual_seed(1)
            ffn = make_ffn(config, 0).to(device, dtype)
            for parameter in ffn.parameters():
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            row["error"] = error(ffn, config, x)
            row["kept_bytes"] = kept_bytes(ffn, x)
            train(ffn, x, grad)
        except UserError as refusal:
            row["absent"] = str(refusal)
            continue
        except torch.OutOfMemoryError:
            row["absent"] = "out of memory"
            continue
        if not row["error"] < TOLERANCE[dtype]:
            row["wrong"] = f"error {row['error']:.2g} is above {TOLERANCE[dtype]:.2g}"
            continue
        ways: dict[str, Callable[[Tensor], Tensor]] = {name: ffn}
        if options.compile:
            ways[f"{name}, compiled"] = torch.compile(ffn)
        for label, way in ways.items():
            forward[label] = repeated(lambda way=way: inference(way))  # type: ignore[misc]
            both[label] = repeated(lambda way=way: train(way, x, grad))  # type: ignore[misc]
    baseline = f"{TWIN}, compiled" if options.compile else TWIN
    result: dict[str, Any] = {"shape": shape, "tokens": tokens, "dtype": str(dtype), "contenders": rows}
    for kind, steps in (("forward", forward), ("forward_backward", both)):
        seconds = measure(steps, options.rounds, options.warmup)
        result[kind] = {
            name: {
                "seconds": spread([value / options.repeat for value in own]),
                f"speed_against {baseline}": spread(
                    [b / o for b, o in zip(seconds[baseline], own, strict=True)]
                ),
            }
            for name, own in seconds.items()
        }
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time one feed-forward network side by side.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096])
    parser.add_argument("--compile", action="store_true", help="time torch.compile'd forms, too")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those")
    parser.add_argument("--repeat", type=int, default=10, help="calls between two looks at the clock")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where to write the record, after every case")
    options = parser.parse_args()
    if options.rounds < 2 or options.repeat < 1 or min(options.tokens) < 1:
        parser.error(
            "--rounds must be at least 2 (percentiles need a spread), --repeat and --tokens at least 1"
        )
    return options


def show(case: dict[str, Any]) -> None:
    """One case as text."""
    print(f"{case['shape']}, {case['tokens']} tokens, {case['dtype']}")
    for name, row in case["contenders"].items():
        reason = row.get("absent") or row.get("wrong")
        print(f"  {name}: {reason or format(row['kept_bytes'] / 2**20, '.1f') + ' MiB kept for backward'}")
    for kind in ("forward", "forward_backward"):
        for name, row in case[kind].items():
            (against,) = (key for key in row if key.startswith("speed_against"))
            ratio, seconds = row[against], row["seconds"]["median"]
            print(
                f"  {kind:16}  {name:42}  {seconds * 1e6:10.0f} us"
                f"  {ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
            )


def main() -> None:
    """Run the cases one after the other; the record is written after each."""
    options = parse()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    record: dict[str, Any] = {
        "benchmark": "ffn",
        "command": shlex.join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "cases": [],
    }
    for shape in options.shape:
        for tokens in options.tokens:
            case = run_case(shape, tokens, options, device)
            show(case)
            record["cases"].append(case)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                partial = options.json.with_suffix(".partial")
                partial.write_text(json.dumps(record, indent=1) + "\n")
                partial.replace(options.json)


if __name__ == "__main__":
    main()
