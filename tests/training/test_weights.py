"""Methods on weights in a run: when they act, that a resume does not show, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stopped_runs import StopAfter, curve

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.errors import UserError
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.low_rank import Restarted
from elas_lightning.runner import RunRequest, execute, run
from elas_lightning.training.interruption import Interrupted
from elas_lightning.training.module import ElasModule

FULL = {"model.config.attention_rank": None, "model.config.ffn_rank": None}
SWIGLU = {"model.config.ffn": "swiglu", "model.config.sparsity.placement": []}


def _overrides(method: str, **fields: Any) -> dict[str, Any]:
    ranks = {} if method in ("sltrain", "relora") else FULL
    own = {f"model.config.weights.{key}": value for key, value in {"method": method, **fields}.items()}
    return {**SWIGLU, **ranks, **own, "trainer.max_steps": 8}


RESTARTS = {
    "model.optimizer.schedule": "cosine_restarts",
    "model.optimizer.restart_every": 2,
    "model.optimizer.restart_warmup_steps": 1,
}
# masks, merges and the change of phase on both sides of the cuts and at them
METHODS: dict[str, dict[str, Any]] = {
    "sltrain": _overrides("sltrain", sltrain_density=0.1),
    "relora": {**_overrides("relora"), **RESTARTS},
    "relora without a warm start": {**_overrides("relora", relora_full_rank_cycles=0), **RESTARTS},
    "sr_ste": _overrides("sr_ste"),
    "s_ste": _overrides("s_ste"),
    "transposable": _overrides("transposable", mask_every=3, dense_end=0.25),
    "asp": _overrides("asp", asp_prune_at=0.5),
    "oats": _overrides("oats", oats_iterations=3),
    "cola-m": {
        **SWIGLU,
        "model.config.bottleneck_activation": "silu",
        "model.config.checkpointing": "bottleneck",
        "trainer.max_steps": 8,
    },
}


@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
def test_resumed_equals_unbroken(overlay: Path, tmp_path: Path, overrides: dict[str, Any]) -> None:
    whole = run(RunRequest(tmp_path / "whole", [overlay], overrides))
    request = RunRequest(tmp_path / "broken", [overlay], overrides)
    for batches in (2, 7):
        with pytest.raises(Interrupted):
            run(request, [StopAfter(batches)])
    resumed = run(request)
    assert whole.state == "complete"
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def _cli(overlay: Path, directory: Path, overrides: dict[str, Any], *callbacks: Callback) -> ElasCLI:
    arguments = command_line([overlay], {**overrides, "trainer.default_root_dir": str(directory)})
    return ElasCLI(arguments, run=False, callbacks=callbacks)


def test_decay_counts_once_a_step_and_after_clipping(overlay: Path, tmp_path: Path) -> None:
    class Watch(Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            for rule, parameter in weight_rules(pl_module.model):  # type: ignore[arg-type]
                if parameter.grad is not None:
                    # the mask has been chosen anew since, by then; weights have hardly moved
                    share = parameter.grad / parameter.detach()
                    assert share[~rule.mask].median() == pytest.approx(1e4, rel=0.2)  # type: ignore[index, operator]

    overrides = {
        **_overrides("sr_ste", decay=1e4, mask_every=100),
        "trainer.accumulate_grad_batches": 3,
        "trainer.max_steps": 2,
        "model.optimizer.lr": 1e-6,
        "model.optimizer.warmup_steps": 1,
    }
    assert execute(_cli(overlay, tmp_path / "run", overrides, Watch())).state == "complete"


class _Phases(Callback):
    """What learns and what the optimizer remembers, after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool, bool]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        (rule, matrix), *_ = weight_rules(pl_module.model)  # type: ignore[arg-type]
        assert isinstance(rule, Restarted)
        state = trainer.optimizers[0].state
        remembers = rule.B in state and bool(state[rule.B]["exp_avg"].any())
        self.seen.append((matrix.requires_grad, matrix in state, remembers))


def test_relora_changes_phase_and_forgets(overlay: Path, tmp_path: Path) -> None:
    phases = _Phases()
    overrides = {**METHODS["relora"], "model.optimizer.restart_every": 3}
    execute(_cli(overlay, tmp_path / "run", overrides, phases))
    full, switched, learns = (True, True, False), (False, False, False), (False, False, True)
    assert phases.seen == [full, full, switched, learns, learns, switched, learns, learns]


# the directory of a run that goes on is not empty, and is meant not to be
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_oats_validates_what_it_leaves(overlay: Path, tmp_path: Path) -> None:
    overrides = {**METHODS["oats"], "checkpoint.every_n_train_steps": 8, "model.config.weights.oats_compression": 0.9}
    cli = _cli(overlay, tmp_path / "oats", overrides)
    result = execute(cli)
    plain = execute(_cli(overlay, tmp_path / "plain", {**METHODS["oats"], "model.config.weights.method": "plain"}))
    losses = {name: [row for row in curve(tmp_path / name) if row[2]] for name in ("oats", "plain")}
    assert losses["oats"] == losses["plain"]  # the same training
    assert result.metrics["val_loss"] != plain.metrics["val_loss"]
    # the checkpoint of the last step holds the decomposed weights, and nothing happens to them again
    again = ElasModule.load_from_checkpoint(cli.checkpoint_path, weights_only=True)
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, cli.model.model.get_parameter(name))
    resumed = _cli(overlay, tmp_path / "oats", overrides)
    assert execute(resumed, ckpt_path=cli.checkpoint_path).metrics["val_loss"] == result.metrics["val_loss"]


def test_a_saved_run_cannot_go_on_as_another_method(overlay: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(RunRequest(tmp_path / "run", [overlay], METHODS["sr_ste"]), [StopAfter(2)])
    other = RunRequest(tmp_path / "run", [overlay], {**METHODS["sr_ste"], "model.config.weights.decay": 0.5})
    with pytest.raises(UserError, match=r"model\.config\.weights is .*0\.5.* but the checkpoint has .*0\.0002"):
        run(other)


def test_checkpointing_may_change_on_the_way(overlay: Path, tmp_path: Path) -> None:
    whole = run(RunRequest(tmp_path / "whole", [overlay], METHODS["cola-m"]))
    request = RunRequest(tmp_path / "run", [overlay], METHODS["cola-m"])
    with pytest.raises(Interrupted):
        run(request, [StopAfter(3)])
    other = RunRequest(tmp_path / "run", [overlay], {**METHODS["cola-m"], "model.config.checkpointing": "none"})
    assert run(other).metrics["val_loss"] == whole.metrics["val_loss"]


def test_loro_refuses_weights_that_are_no_factors(overlay: Path, tmp_path: Path) -> None:
    overrides = {
        "model.config.weights.method": "sr_ste",
        "model.optimizer.name": "loro",
        "model.config.attention_rank": 4,
    }
    with pytest.raises(UserError, match=r"loro but model\.config\.weights\.method = sr_ste stands between"):
        execute(_cli(overlay, tmp_path / "run", overrides))


@pytest.mark.parametrize("optimizer", ["muon", "galore"])
def test_sparse_entries_go_by_adamw_at_the_blocks_rate(overlay: Path, tmp_path: Path, optimizer: str) -> None:
    overrides = {
        **METHODS["sltrain"],
        "model.optimizer.name": optimizer,
        "model.optimizer.galore_rank": 2,
        "model.optimizer.block_lr_ratio": 0.5,
    }
    cli = _cli(overlay, tmp_path / "run", overrides)
    assert execute(cli).state == "complete"
    (entries,) = [g for g in cli.trainer.optimizers[0].param_groups if g["params"][0].ndim == 1]
    assert entries["initial_lr"] == 0.5 * cli.model.optimizer.lr
    assert len(entries["params"]) == 2 * 7


def test_relora_with_a_warm_start_is_refused_on_several_processes(overlay: Path, tmp_path: Path) -> None:
    overrides = {**METHODS["relora"], "trainer.devices": 2, "trainer.strategy": "ddp"}
    cli = _cli(overlay, tmp_path / "run", overrides)
    cli.model.trainer = cli.trainer
    with pytest.raises(UserError, match=r"relora_full_rank_cycles is 1 but 2 processes .*set it to 0"):
        cli.model.setup("fit")
