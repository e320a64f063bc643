"""Time whole training steps side by side: transformers' LLaMA, our full-rank SwiGLU, our low-rank variants.

A step is forward, loss, backward and fused AdamW in float32. The contenders take turns, one step each a
round, so that other load on the machine meets all of them alike; ratios are taken within rounds. Only torch
and this checkout are needed; without transformers its contender is reported as absent.

    python benchmarks/train_step.py --shape 60m --batch 4 --steps 20 --json benchmarks/results/train_step.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.account import count_parameters, flops_per_token
from elas_lightning.nn.loss import linear_next_token_loss

# name: hidden size, SwiGLU width, layers, heads, rank (ELAS, arXiv 2605.03667); smoke only tries the script
SHAPES = {
    "smoke": (64, 128, 2, 4, 16),
    "60m": (512, 1376, 8, 8, 128),
    "130m": (768, 2048, 12, 12, 256),
    "350m": (1024, 2736, 24, 16, 256),
}
TRANSFORMERS, FULL, LOW_RANK, ELAS = "transformers full rank", "full rank", "low rank dense", "elas"

Step = Callable[[], None]


def configs(shape: str, vocabulary: int) -> dict[str, ModelConfig]:
    """Our contenders at one shape."""
    hidden, intermediate, layers, heads, rank = SHAPES[shape]
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": layers,
        "num_heads": heads,
    }
    low_rank = {**common, "attention_rank": rank, "ffn_rank": rank, "ffn": "relu2"}
    return {
        FULL: ModelConfig(**common),
        LOW_RANK: ModelConfig(**low_rank),
        ELAS: ModelConfig(**low_rank, sparsity=SparsityConfig(placement=("ffn_hidden",))),
    }


def make_step(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Step:
    """A closure that trains for one step and waits until the device is done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def our_step(config: ModelConfig, input_ids: Tensor, labels: Tensor) -> Step:
    """One step of one of our models."""
    model = Llama(config).to(input_ids.device)

    def loss() -> Tensor:
        sum_nll, count = linear_next_token_loss(model.hidden(input_ids), model.lm_head.weight, labels)
        return sum_nll / count

    return make_step(model, loss, input_ids.device)


def transformers_step(config: ModelConfig, input_ids: Tensor) -> Step:
    """One step of transformers' LLaMA of the same shape, with its own loss (which shifts the labels)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=max(input_ids.shape[1], 256),
        rms_norm_eps=config.norm_eps,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(theirs)
    model = model.to(input_ids.device)
    return make_step(model, lambda: model(input_ids=input_ids, labels=input_ids).loss, input_ids.device)


def spread(values: list[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentiles."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": p20, "p80": p80}


def measure(steps: dict[str, Step], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round; the order turns, so that nobody always goes first."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(warmup + rounds):
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            start = time.perf_counter()
            steps[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time whole training steps side by side.")
    parser.add_argument("--shape", choices=SHAPES, default="60m")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--sequence", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=15, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write the record")
    options = parser.parse_args()
    if options.steps < 2 or options.warmup < 0:
        parser.error("--steps must be at least 2 (percentiles need a spread) and --warmup at least 0")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and gather the record."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    tokens = torch.randint(options.vocabulary, (options.batch, options.sequence + 1), device=device)
    input_ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ours = configs(options.shape, options.vocabulary)
    steps: dict[str, Step] = {}
    absent: dict[str, str] = {}
    versions = {"torch": str(torch.__version__)}
    if find_spec("transformers"):
        steps[TRANSFORMERS] = transformers_step(ours[FULL], input_ids)
        versions["transformers"] = metadata.version("transformers")
    else:
        absent[TRANSFORMERS] = "transformers is not installed"
    steps |= {name: our_step(config, input_ids, labels) for name, config in ours.items()}

    seconds = measure(steps, options.steps, options.warmup)
    baselines = [name for name in (TRANSFORMERS, FULL, LOW_RANK) if name in seconds]
    rows = {}
    for name, own in seconds.items():
        config = ours[FULL if name == TRANSFORMERS else name]
        rows[name] = {
            "seconds": spread(own),
            "tokens_per_second": input_ids.numel() / statistics.median(own),
            "parameters": count_parameters(config)["total"],
            "flops_per_token": flops_per_token(config, options.sequence)["total"],
            "speed_against": {
                other: spread([theirs / mine for theirs, mine in zip(seconds[other], own, strict=True)])
                for other in baselines
                if other != name
            },
        }
    cuda = device.type == "cuda"
    return {
        "benchmark": "train_step",
        "command": shlex.join(["python", *sys.argv]),
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(options).items()},
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "versions": {"python": platform.python_version(), **versions},
        "dtype": "float32",
        "contenders": rows,
        "absent": absent,
        "raw_seconds": seconds,
    }


def processor() -> str:
    """The CPU's name and features, as well as the system tells them."""
    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {capability}, {torch.get_num_threads()} threads"


def table(record: dict[str, Any]) -> str:
    """The record as text: seconds, and how many times as fast as each baseline (20th to 80th percentile)."""

    def cell(value: dict[str, float] | None) -> str:
        return f"{value['median']:.2f} ({value['p20']:.2f}-{value['p80']:.2f})" if value else "-"

    rows = record["contenders"]
    baselines = [name for name in (TRANSFORMERS, FULL, LOW_RANK) if name in rows]
    lines = [["contender", "seconds", "tokens/s", "parameters", *(f"x {name}" for name in baselines)]]
    for name, row in rows.items():
        ratios = [cell(row["speed_against"].get(other)) for other in baselines]
        size = f"{row['parameters'] / 1e6:.1f} M"
        lines.append([name, cell(row["seconds"]), f"{row['tokens_per_second']:.0f}", size, *ratios])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) for line in lines
    ]
    text += [f"absent: {name}: {why}" for name, why in record["absent"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*text, f"{record['device']}; {versions}; {record['dtype']}", record["command"]])


def main() -> None:
    """Run, print the table, write the record."""
    options = parse()
    record = run(options)
    print(table(record))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
