"""DDP and FSDP2 on two processes: weights, moments and figures of one process, and checkpoints that move between them.

One process with twice the gradient accumulation sees the same micro-batches in the same order. Halving is exact in
binary arithmetic and a sum of two has one order, so on two processes nothing but the norm of sharded gradients is added
up otherwise; all else is compared bit for bit.
"""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from csv_rows import rows_of
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from several_ranks import DDP, FOLDER, FSDP, Job, curve, differing, run_together, tensors

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.data import C4DataModule
from elas_lightning.errors import UserError
from elas_lightning.inference.load import load_model
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.result import RunResult
from elas_lightning.runner import execute
from elas_lightning.training.checkpoints import TornCheckpoint, newest_usable, read, take_up, verify
from elas_lightning.training.sharding import FullyShardedStrategy, check_strategy

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
    "trainer.max_steps": 8,
    "trainer.val_check_interval": 4,
    "trainer.gradient_clip_val": 100.0,  # never reached
    "checkpoint.every_n_train_steps": 4,
}
LORO = {"model.optimizer.name": "loro"}
KINDS: dict[str, dict[str, Any]] = {"ddp": DDP, "fsdp": FSDP}
# so many that some have no token in a micro-batch; routers stay in float32, where matrices are gathered in bfloat16
EXPERTS = {"model.config.experts.count": 24, "model.config.experts.per_token": 2, "trainer.precision": "bf16-mixed"}


@dataclass
class Made:
    """The runs of this file: ``<optimizer>_<kind>``, and what was gone on with under another name."""

    folder: Path
    overlay: Path

    def end(self, name: str) -> Path:
        """A run's checkpoint of its last step."""
        return self.folder / name / "checkpoints/last.ckpt"

    def middle(self, name: str) -> Path:
        """A run's checkpoint of half its way."""
        return self.folder / name / "checkpoints/previous.ckpt"

    def alone(self, name: str, source: Path | None = None, **changes: Any) -> None:
        """Make a run on one process, with the micro-batches of two."""
        own = {**COMMON, "trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 8, **changes}
        own["trainer.default_root_dir"] = str(self.folder / name)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each of two processes: compiled code adds up by threads
        try:
            execute(ElasCLI(command_line([self.overlay], own), run=False), ckpt_path=source)
        finally:
            torch.set_num_threads(threads)

    def job(self, name: str, kind: dict[str, Any], source: Path | None = None, **changes: Any) -> Job:
        """A run for two processes."""
        return Job(
            str(self.folder / name),
            str(self.overlay),
            {**COMMON, **kind, **changes},
            None if source is None else str(source),
        )


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
    made.alone("experts_one", **EXPERTS)
    jobs += [made.job(f"experts_{kind}", strategy, **EXPERTS) for kind, strategy in KINDS.items()]
    jobs.append(made.job("loro_folder", FOLDER, **LORO))
    for kind, strategy in KINDS.items():
        blocks, clipped = {"model.config.checkpointing": "block"}, {"trainer.gradient_clip_val": 0.1}
        jobs.append(made.job(f"blocks_{kind}", strategy, **LORO, **blocks))
        jobs.append(made.job(f"clipped_{kind}", strategy, **clipped))
    workers = {"data.num_workers": 2}
    jobs += [
        made.job("one_to_fsdp", FSDP, made.middle("loro_one"), **LORO),
        made.job("ddp_to_fsdp", FSDP, made.middle("loro_ddp"), **LORO, **workers),
        made.job("fsdp_to_ddp", DDP, made.middle("loro_fsdp"), **LORO, **workers),
        made.job("folder_to_folder", FOLDER, made.middle("loro_folder"), **LORO),
        made.job("folder_to_ddp", DDP, made.middle("loro_folder"), **LORO),
    ]
    for kind, strategy in {**KINDS, "folder": FOLDER}.items():
        # a scheduler tells all of them, the system's own killer only one
        stopped = made.job(f"stopped_{kind}", strategy, **LORO)
        stopped.signals = {"1": [signal.SIGTERM, 5]} | ({"0": [signal.SIGTERM, 5]} if kind == "ddp" else {})
        jobs += [stopped, made.job(f"stopped_{kind}", strategy, made.end(f"stopped_{kind}"), **LORO)]
    full = made.job("full_folder", FOLDER, **LORO)
    full.full_disk = 1
    run_together(folder / "jobs", [*jobs, full])
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_train_what_one_trains(made: Made, name: str, kind: str) -> None:
    assert list(differing(made.end(f"{name}_one"), made.end(f"{name}_{kind}"))) == []
    one, two = made.folder / f"{name}_one", made.folder / f"{name}_{kind}"
    assert curve(two, "tokens") == curve(one, "tokens")
    # the sums behind a figure are made in float32, in another order
    for column in ("train_loss", "val_loss", "val_bits_per_byte"):
        assert curve(two, column) == pytest.approx(curve(one, column), rel=1e-6)
        assert len(curve(two, column)) == {"train_loss": 8}.get(column, 2)


def test_the_validation_set_is_one_that_two_processes_cannot_share_evenly(made: Made) -> None:
    config = read(made.end("adamw_one"))["datamodule_hyper_parameters"]
    data = C4DataModule(**config)
    shares = [data._validation.batches(3, rank, 2) for rank in range(2)]
    targets = [sum(int((batch["labels"] != -100).sum()) for batch in share) for share in shares]
    assert targets[0] != targets[1]
    assert sum(targets) == 333
    assert bool((list(shares[1])[-1]["labels"][-1] == -100).all())  # a row to make the shares equally long


@pytest.mark.parametrize("kind", KINDS)
def test_the_protocols_batches_are_those_of_one_process(made: Made, kind: str) -> None:
    """By which its number is divided, plus one."""
    data = C4DataModule(**read(made.end("adamw_one"))["datamodule_hyper_parameters"])
    data.setup("validate")
    for name, ranks in (("adamw_one", 1), (f"adamw_{kind}", 2)):
        metrics = RunResult.read(made.folder / name).metrics
        assert metrics["val_batches"] == len(data._validation.batches(data.validation_batch_size, 0, ranks))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_checkpointed_on_several_processes(made: Made, kind: str) -> None:
    assert list(differing(made.end("loro_one"), made.end(f"blocks_{kind}"))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_trained_on_several_processes(made: Made, kind: str) -> None:
    """The balance is that of a micro-batch, so it does not depend on who has it."""
    assert list(differing(made.end("experts_one"), made.end(f"experts_{kind}"))) == []


def test_gradients_are_clipped_by_the_norm_over_all_shards(made: Made) -> None:
    made.alone("clipped_one", **{"trainer.gradient_clip_val": 0.1})
    assert list(differing(made.end("clipped_one"), made.end("clipped_ddp"))) == []
    expected, found = tensors(made.end("clipped_one")), tensors(made.end("clipped_fsdp"))
    # a norm that is added up in another order has a relative error of some 1e-7, which training carries on
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)  # a thousandth of an update
    unclipped = tensors(made.end("adamw_one"))
    assert not torch.allclose(unclipped["0.exp_avg"], expected["0.exp_avg"], rtol=0.5)


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
        rows[kind] = rows_of(made.folder / f"loro_{kind}/telemetry.csv")
    assert rows["fsdp"] == rows["ddp"]
    assert len(rows["fsdp"]) == 2 * 2  # validations by layers: one process has written
    assert float(rows["fsdp"][-1]["gradient_cosine"]) > 0


@pytest.mark.parametrize("name", ["one_to_fsdp", "ddp_to_fsdp", "fsdp_to_ddp", "folder_to_folder", "folder_to_ddp"])
def test_two_processes_go_on_from_any_checkpoint(made: Made, name: str) -> None:
    assert list(differing(made.end("loro_one"), made.end(name))) == []
    losses = curve(made.folder / "loro_one", "train_loss")
    assert curve(made.folder / name, "train_loss") == pytest.approx(losses[4:], rel=1e-6)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("source", ["ddp", "fsdp", "folder"])
def test_one_process_goes_on_from_the_checkpoint_of_two(made: Made, source: str) -> None:
    made.alone(f"{source}_to_one", made.middle(f"loro_{source}"), **LORO)
    assert list(differing(made.end("loro_one"), made.end(f"{source}_to_one"))) == []


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "folder"])
def test_a_signal_to_some_process_stops_all_where_they_can_go_on(made: Made, kind: str) -> None:
    directory = made.folder / f"stopped_{kind}"
    assert [(directory / f"stopped.{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
    assert list(differing(made.end("loro_one"), made.end(f"stopped_{kind}"))) == []
    assert curve(directory, "train_loss") == curve(made.folder / "loro_ddp", "train_loss")
    assert len(list(directory.glob("curve.csv*"))) == 1


def test_a_folder_holds_what_each_process_has_and_no_more(made: Made) -> None:
    folder = made.end("loro_folder")
    assert sorted(path.name for path in folder.iterdir()) == [
        "shard-00000-of-00002.pt",
        "shard-00001-of-00002.pt",
        "whole.pt",
    ]
    assert list(differing(made.end("loro_fsdp"), folder)) == []
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes["shard-00001-of-00002.pt"] < made.end("loro_fsdp").stat().st_size * 0.75


def test_a_full_disk_of_one_process_leaves_the_folder_that_was_there(made: Made) -> None:
    directory = made.folder / "full_folder"
    first, second = ((directory / f"refused.{rank}").read_text() for rank in range(2))
    assert "another process could not write its part of" in first
    assert "No space left on device): what was saved before is untouched" in second
    assert list((directory / "checkpoints").iterdir()) == [made.end("full_folder")]
    assert list(differing(made.middle("loro_folder"), made.end("full_folder"))) == []


@pytest.mark.parametrize("fails", ["pathlib.Path.mkdir", "elas_lightning.training.sharding.retire"])
def test_a_folder_that_cannot_be_made_or_put_in_its_place_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    strategy, last = FullyShardedStrategy(sharded_checkpoints=True), tmp_path / "last.ckpt"
    monkeypatch.setattr(FullyShardedStrategy, "world_size", 1)
    monkeypatch.setattr(strategy, "reduce_boolean_decision", lambda decision, all: decision)
    strategy._save_folder({"global_step": 4}, last)
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(fails, Mock(side_effect=no_space))
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written \(No space left on device\)"):
        strategy._save_folder({"global_step": 8}, last)
    assert list(tmp_path.iterdir()) == [last]
    assert torch.load(last / "whole.pt")["global_step"] == 4


def _copy(made: Made, folder: Path) -> Path:
    return Path(shutil.copytree(made.folder / "loro_folder/checkpoints", folder / "checkpoints"))


def test_a_torn_folder_is_told_and_the_one_before_is_taken(made: Made, tmp_path: Path) -> None:
    checkpoints = _copy(made, tmp_path)
    shard = checkpoints / "last.ckpt/shard-00001-of-00002.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TornCheckpoint, match=r"the checksum of .* in shard-00001-of-00002\.pt is wrong"):
        verify(checkpoints / "last.ckpt")
    assert newest_usable(checkpoints) == checkpoints / "previous.ckpt"


@pytest.mark.parametrize("missing", ["whole.pt", "shard-00000-of-00002.pt"])
def test_a_folder_with_a_missing_file_is_torn(made: Made, tmp_path: Path, missing: str) -> None:
    checkpoints = _copy(made, tmp_path)
    (checkpoints / "last.ckpt" / missing).unlink()
    with pytest.raises(TornCheckpoint, match="No such file"):
        verify(checkpoints / "last.ckpt")
    with pytest.raises(TornCheckpoint):
        read(checkpoints / "last.ckpt")


def test_what_a_killed_writer_left_goes_when_the_run_is_taken_up(made: Made, tmp_path: Path) -> None:
    checkpoints = _copy(made, tmp_path)
    shutil.copytree(checkpoints / "last.ckpt", checkpoints / "last.ckpt.tmp")
    assert take_up(checkpoints) == checkpoints / "last.ckpt"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_trained_model_is_loaded_from_a_folder(made: Made) -> None:
    one, folder = load_model(made.folder / "loro_one"), load_model(made.folder / "loro_folder")
    ids = torch.arange(16).view(1, 16)
    assert torch.equal(one.model(ids), folder.model(ids))
    assert folder.path == made.end("loro_folder")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about torch
def test_two_processes_train_what_one_trains_compiled_and_in_bfloat16(
    write_overlay: Callable[[Path], Path], tmp_path: Path
) -> None:
    made = Made(tmp_path, write_overlay(tmp_path))
    variants = {
        "bf16-mixed": {"trainer.precision": "bf16-mixed"},
        "bf16-true": {"trainer.precision": "bf16-true"},
        "compiled": {"model.compile": True},
        "compiled-blocks": {"model.compile": True, "model.config.checkpointing": "block"},
    }
    jobs = []
    for name, changes in variants.items():
        made.alone(f"{name}_one", **changes)
        jobs += [made.job(f"{name}_{kind}", strategy, **changes) for kind, strategy in KINDS.items()]
    run_together(tmp_path / "jobs", jobs)
    for name in variants:
        assert list(differing(made.end(f"{name}_one"), made.end(f"{name}_ddp"))) == [], name
        expected, found = tensors(made.end(f"{name}_one")), tensors(made.end(f"{name}_fsdp"))
        for key, value in expected.items():
            # a graph of a part of the model adds up otherwise than one of the whole
            tolerance = 1e-4 if name.startswith("compiled") else 0.0
            torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("strategy", "weights", "message"),
    [
        (FullyShardedStrategy(), {"method": "sltrain"}, r"weights\.method is sltrain, whose rules need whole weights"),
        (FSDPStrategy(), {}, r"trainer\.strategy FSDPStrategy is not supported: choose ddp"),
        (ModelParallelStrategy(), {}, r"trainer\.strategy ModelParallelStrategy is not supported"),
    ],
)
def test_what_cannot_be_sharded_is_refused(strategy: Strategy, weights: dict[str, Any], message: str) -> None:
    config = ModelConfig(attention_rank=4, ffn_rank=4, weights=WeightsConfig(**weights))
    with pytest.raises(UserError, match=message):
        check_strategy(strategy, config)
