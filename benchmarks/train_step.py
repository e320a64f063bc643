"""Time whole training steps side by side: transformers' LLaMA, our baselines, every ELAS path, eager and compiled.

A step is forward, loss, backward and fused AdamW: float32 on a CPU, bfloat16 autocast over float32 weights on a GPU, as
in training. Each contender takes turns with two baselines, the dense low-rank twin and full rank, so that no more than
three models are in memory and every ratio is of one process and one time. What cannot run is reported with its
reason. Only torch and this checkout are needed; without transformers its contender is reported as absent.

    python benchmarks/train_step.py --shape 60m --batch 4 --rounds 8 --json benchmarks/results/train_step.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contenders import FULL, TWIN, asked_for, baselines, elas
from measuring import Record, add_options, figures, free, host_text, measure, ratios, usual_dtype
from memory import memory_split
from modes import COMPILED, add_model, compile_blocks, compiled

from elas_lightning.commands.arguments import Parser
from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.account import count_parameters, flops_per_token
from elas_lightning.nn.ffn import ffn_path
from elas_lightning.nn.loss import linear_next_token_loss

TRANSFORMERS = "transformers' LLaMA, full rank"


@dataclass
class Contender:
    """A model with its optimizer, ready to take steps on one batch."""

    model: nn.Module
    step: Callable[[], object]
    memory: dict[str, int | None]


def autocast(device: torch.device) -> Any:
    """Bfloat16 on a GPU, nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _make_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], device: torch.device
) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours(config: ModelConfig, input_ids: Tensor, labels: Tensor, options: argparse.Namespace) -> Contender:
    """One of our models; compiled whole it is as ``ElasModule`` compiles it: decoder, head and loss in one graph."""
    device = input_ids.device
    torch.manual_seed(0)
    with device:
        model = Llama(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def head(features: Tensor) -> Tensor:
        return linear_next_token_loss(features, model.lm_head.weight, labels)[0] / labels.numel()

    memory: dict[str, int | None] = {}
    if not options.rehearse:
        hidden = partial(model.hidden, input_ids)
        memory = memory_split(model, optimizer, hidden, head, partial(autocast, device))

    def loss(input_ids: Tensor, labels: Tensor) -> Tensor:
        nll, count = linear_next_token_loss(model.hidden(input_ids), model.lm_head.weight, labels)
        return nll / count

    if options.compile == "blocks":
        compile_blocks(model)
    called = partial(compiled(loss) if options.compile == "whole" else loss, input_ids, labels)
    return Contender(model, _make_step(optimizer, called, device), memory)


def transformers_model(config: ModelConfig, input_ids: Tensor) -> Contender:
    """Transformers' LLaMA of the same shape, with its own loss (which shifts the labels)."""
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
    with input_ids.device:
        model: nn.Module = LlamaForCausalLM(theirs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss = lambda: model(input_ids=input_ids, labels=input_ids).loss  # noqa: E731
    return Contender(model, _make_step(optimizer, loss, input_ids.device), {})


def contenders(shape: str, options: argparse.Namespace) -> dict[str, ModelConfig]:
    """All there are, in the order they are measured; transformers' model has the shape of our full-rank one."""
    dense = baselines(shape, options.vocabulary, options.layers)
    everyone = {TRANSFORMERS: dense[FULL], **dense, **elas(dense[TWIN])}
    return {name: replace(config, checkpointing=options.checkpointing) for name, config in everyone.items()}


class Case:
    """One shape and batch: the baselines, which stay in memory, and what each contender takes beside them.

    Args:
        everyone: All contenders of the shape, by name.
        batch: Sequences a step.
        options: Of the command line.
        record: Knows the device, and why a contender has no figure.
    """

    def __init__(
        self, everyone: dict[str, ModelConfig], batch: int, options: argparse.Namespace, record: Record
    ) -> None:
        self.options, self.record, self.device = options, record, record.device
        torch.manual_seed(0)
        ids = torch.randint(options.vocabulary, (batch, options.sequence + 1), device=self.device)
        self.input_ids, self.labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        # in a rehearsal each is by itself, so that many processes find room on one device
        measures = () if options.rehearse else (TWIN, FULL)
        self.against = {name: self.build(name, everyone[name]) for name in measures}
        self.pair: dict[str, list[float]] = {}

    def build(self, name: str, config: ModelConfig) -> Contender:
        """One contender.

        Raises:
            UserError: Transformers' model cannot take part.
        """
        if name != TRANSFORMERS:
            return ours(config, self.input_ids, self.labels, self.options)
        if not find_spec("transformers"):
            raise UserError("transformers is not installed")
        if self.options.compile or self.options.checkpointing != "none":
            # beside what is compiled or checkpointed it would be another comparison than the record says
            raise UserError("transformers' model is timed as it comes: leave out --compile and --checkpointing")
        return transformers_model(config, self.input_ids)

    def seconds_beside(self, name: str, contender: Contender) -> dict[str, list[float]]:
        """A contender's and the baselines'; the rows of the baselines come from one run of the pair."""
        if name in self.pair:
            return self.pair
        steps = {key: one.step for key, one in {**self.against, name: contender}.items()}
        seconds = measure(steps, self.device, self.options.rounds)
        if name in self.against:
            self.pair = seconds
        return seconds

    def add_figures(self, name: str, config: ModelConfig, row: dict[str, Any]) -> None:
        """Build a contender and add to its row what it takes; in a rehearsal, take one step."""
        contender = self.against.get(name) or self.build(name, config)
        row["memory"] = contender.memory
        if name != TRANSFORMERS:
            row["path"] = ffn_path(config, self.device)
        if self.options.rehearse:
            contender.step()
            return
        seconds = self.seconds_beside(name, contender)
        row |= figures(seconds[name], contender.step, self.device, self.options.energy)
        tokens, took = self.input_ids.numel(), row["seconds"]["median"]
        row["tokens_per_second"] = tokens / took
        row["speed_against"] = {other: ratios(seconds[other], seconds[name]) for other in self.against}
        row["share_of_matmul_peak"] = row["flops_per_token"] * tokens / took / self.record.peak
        show(name, row)


def run_case(shape: str, batch: int, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Measure all contenders at one shape and batch."""
    everyone = contenders(shape, options)
    wanted = asked_for(everyone, options.only)
    case = Case(everyone, batch, options, record)
    rows: dict[str, dict[str, Any]] = {}
    for name, config in wanted.items():
        rows[name] = {
            "parameters": count_parameters(config)["total"],
            "flops_per_token": flops_per_token(config, options.sequence)["total"],
        }
        try:
            case.add_figures(name, config, rows[name])
        except Exception as refusal:  # one contender's fault is not to cost the figures of the others
            rows[name]["absent"] = record.reason(name, refusal)
        free(record.device)  # the contender is gone with the call
    return {
        "shape": shape,
        "layers": everyone[TWIN].num_layers,
        "batch": batch,
        "sequence": options.sequence,
        "mode": COMPILED[options.compile] if options.compile else "eager",
        "checkpointing": options.checkpointing,
        "contenders": rows,
    }


def show(name: str, row: dict[str, Any]) -> None:
    """One contender as a line."""
    against = "  ".join(
        f"{ratio['median']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f}) {other}"
        for other, ratio in row["speed_against"].items()
    )
    print(f"  {name:34}  {row['seconds']['median'] * 1e3:9.2f} ms  {against}{host_text(row)}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser("elas bench train-step", description="Time whole training steps side by side.")
    add_model(parser, "sequences a step")
    parser.add_argument(
        "--checkpointing", choices=("none", "block"), default="none", help="what backward computes again"
    )
    return add_options(parser, rounds=10, in_turns=False)


def main() -> None:
    """Run the cases one after the other."""
    options = parse()
    device = torch.device(options.device)
    record = Record("train_step", device, usual_dtype(device), options.json)
    for shape in options.shape:
        for batch in options.batch:
            mode = COMPILED[options.compile] if options.compile else "eager"
            print(f"{shape}, {batch} x {options.sequence} tokens, {mode}; times as fast as:", flush=True)
            record.add(run_case(shape, batch, options, record))
            free(device)
    record.close()


if __name__ == "__main__":
    main()
