"""DDP and FSDP2 on two processes: the weights, moments and figures of one process, and checkpoints that move between them.

One process with twice the gradient accumulation sees the same micro-batches in the same order. Halving is exact in binary
arithmetic and a sum of two has one order, so on two processes nothing but the norm of sharded gradients is added up
otherwise; all else is compared bit for bit.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import DDP, FOLDER, FSDP, Job, curve, differing, run_together, tensors

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.data import C4DataModule
from elas_lightning.runner import execute
from elas_lightning.training.checkpoints import read

OPTIMIZERS = ("adamw", "loro", "muon", "galore")
# Ranks, widths and vocabulary that two processes cannot share evenly; an exact step of LORO and a new subspace of
# GaLore on the way; documents padded to their length, and a validation set of an odd number of rows.
COMMON = {
    "model.config.vocab_size": 301,
    "model.config.attention_rank": 3,
    "model.config.ffn_rank": 5,
    "model.config.intermediate_size": 36,
    "model.config.sparsity.dense_warmup_steps": 2,
    "model.optimizer.restart_every": 3,
    "model.optimizer.galore_update_every": 3,
    "model.optimizer.galore_rank": 2,
    "data.batching": "truncate",
    "data.validation_tokens": 333,
    "data.validation_batch_size": 3,
    "trainer.max_steps": 6,
    "trainer.val_check_interval": 3,
    "trainer.gradient_clip_val": 100.0,  # never reached
}
LONGER = {"trainer.max_steps": 6, "trainer.val_check_interval": 6}
KINDS: dict[str, dict[str, Any]] = {"ddp": DDP, "fsdp": FSDP}


@dataclass
class Made:
    """Where the runs of this file lie: ``<optimizer>_<kind>`` and what they were resumed as."""

    folder: Path
    overlay: Path

    def alone(self, name: str, ckpt_path: Path | None = None, **changes: Any) -> Path:
        """Make a run on one process, with the micro-batches of two."""
        directory = self.folder / name
        own = {**COMMON, "trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 6, **changes}
        own["trainer.default_root_dir"] = str(directory)
        cli = ElasCLI(command_line([self.overlay], own), run=False)
        execute(cli, ckpt_path=ckpt_path)
        cli.trainer.save_checkpoint(directory / "end.ckpt")
        return directory

    def job(self, name: str, kind: dict[str, Any], source: str | None = None, **changes: Any) -> Job:
        start = None if source is None else str(self.folder / source / "end.ckpt")
        return Job(str(self.folder / name), str(self.overlay), {**COMMON, **kind, **changes}, start)


# Lightning says that a run goes on in another directory than its checkpoint's
@pytest.fixture(scope="module")
def made(write_overlay: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ranks")
    made = Made(folder, write_overlay(folder))
    for name in OPTIMIZERS:
        made.alone(f"{name}_one", **{"model.optimizer.name": name})
    jobs = [
        made.job(f"{name}_{kind}", strategy, **{"model.optimizer.name": name})
        for name in OPTIMIZERS
        for kind, strategy in KINDS.items()
    ]
    loro, on = {"model.optimizer.name": "loro"}, {"trainer.max_steps": 9}
    for kind, strategy in KINDS.items():
        jobs.append(
            made.job(f"blocks_{kind}", strategy, **loro, **{"model.config.checkpointing": "block"})
        )
        jobs.append(made.job(f"clipped_{kind}", strategy, **loro, **{"trainer.gradient_clip_val": 0.1}))
    jobs += [
        made.job("loro_folder", FOLDER, **loro),
        made.job("one_to_fsdp", FSDP, "loro_one", **loro, **on),
        made.job("ddp_to_fsdp", FSDP, "loro_ddp", **loro, **on, **{"data.num_workers": 2}),
        made.job("fsdp_to_ddp", DDP, "loro_fsdp", **loro, **on, **{"data.num_workers": 2}),
        made.job("folder_to_fsdp", FOLDER, "loro_folder", **loro, **on),
        made.job("folder_to_ddp", DDP, "loro_folder", **loro, **on),
    ]
    run_together(folder / "jobs", jobs)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_train_what_one_trains(made: Made, name: str, kind: str) -> None:
    one, two = made.folder / f"{name}_one", made.folder / f"{name}_{kind}"
    assert list(differing(one / "end.ckpt", two / "end.ckpt")) == []
    assert curve(two, "tokens") == curve(one, "tokens")
    # the sums behind a figure are made in float32, in another order
    for column in ("train_loss", "val_loss", "val_bits_per_byte"):
        assert curve(two, column) == pytest.approx(curve(one, column), rel=1e-6)
        assert len(curve(two, column)) == {"train_loss": 6}.get(column, 2)


def test_the_validation_set_is_one_that_two_processes_cannot_share_evenly(made: Made) -> None:
    config = read(made.folder / "adamw_one/end.ckpt")["datamodule_hyper_parameters"]
    data = C4DataModule(**config)
    shares = [data._validation.batches(3, rank, 2) for rank in range(2)]
    targets = [sum(int((batch["labels"] != -100).sum()) for batch in share) for share in shares]
    assert targets[0] != targets[1]
    assert sum(targets) == 333
    assert bool((list(shares[1])[-1]["labels"][-1] == -100).all())  # a row to make the shares equally long


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_checkpointed_on_several_processes(made: Made, kind: str) -> None:
    assert list(differing(made.folder / "loro_one/end.ckpt", made.folder / f"blocks_{kind}/end.ckpt")) == []


def test_gradients_are_clipped_by_the_norm_over_all_shards(made: Made) -> None:
    one = made.alone("clipped_one", **{"model.optimizer.name": "loro", "trainer.gradient_clip_val": 0.1})
    assert list(differing(one / "end.ckpt", made.folder / "clipped_ddp/end.ckpt")) == []
    expected = tensors(one / "end.ckpt")
    found = tensors(made.folder / "clipped_fsdp/end.ckpt")
    # a norm added up in another order has a relative error of some 1e-7, which Adam's ratio of moments cancels but for ε
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    unclipped = tensors(made.folder / "loro_one/end.ckpt")
    moments = [name for name in expected if name.endswith("exp_avg")]
    assert max(float((expected[n] - unclipped[n]).abs().max()) for n in moments) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_describes_the_run_and_not_a_share_of_it(made: Made, kind: str) -> None:
    one = json.loads((made.folder / "loro_one/result.json").read_text())
    two = json.loads((made.folder / f"loro_{kind}/result.json").read_text())
    for key in ("tokens", "parameters", "flops_per_token", "loss_spikes", "account"):
        assert two["metrics"][key] == one["metrics"][key], key
    assert two["metrics"]["peak_memory_bytes"] > 0
    assert (two["environment"]["world_size"], one["environment"]["world_size"]) == (2, 1)


def test_telemetry_looks_at_whole_weights(made: Made) -> None:
    rows = {}
    for kind in KINDS:
        with (made.folder / f"loro_{kind}/telemetry.csv").open() as file:
            rows[kind] = list(csv.DictReader(file))
    assert rows["fsdp"] == rows["ddp"]
    assert len(rows["fsdp"]) == 2 * 2  # validations by layers: one process has written
    assert float(rows["fsdp"][-1]["gradient_cosine"]) > 0


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_moves_between_one_process_and_two(made: Made) -> None:
    longer = {"model.optimizer.name": "loro", "trainer.max_steps": 9}
    start = made.folder / "loro_one/end.ckpt"
    one = made.alone("one_to_one", start, **longer)
    for source in ("fsdp", "folder"):
        made.alone(f"{source}_to_one", made.folder / f"loro_{source}/end.ckpt", **longer)
    # whoever wrote it and whoever reads it, with whatever number of workers
    for name in ("one_to_fsdp", "ddp_to_fsdp", "fsdp_to_ddp", "folder_to_fsdp", "folder_to_ddp", "fsdp_to_one",
                 "folder_to_one"):  # fmt: skip
        assert list(differing(one / "end.ckpt", made.folder / name / "end.ckpt")) == [], name
        assert curve(made.folder / name, "train_loss") == pytest.approx(curve(one, "train_loss"), rel=1e-6)
