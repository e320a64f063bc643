"""Every optimizer goes on from its checkpoint bit for bit; what it saves is plain; clipping and bfloat16 work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import StopAfter, curve

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.errors import UserError
from elas_lightning.runner import RunRequest, execute, run
from elas_lightning.training.interruption import Interrupted

# exact steps, new subspaces and restarts on both sides of the cut and at it
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw with restarts": {"schedule": "cosine_restarts", "restart_every": 3, "restart_warmup_steps": 2},
    "loro": {"name": "loro", "schedule": "cosine_restarts", "restart_every": 3, "restart_warmup_steps": 2},
    "loro, gradient": {"name": "loro", "restart_every": 3, "loro_direction": "gradient"},
    "muon": {"name": "muon"},
    "galore": {"name": "galore", "galore_rank": 2, "galore_update_every": 3},
}


def _overrides(optimizer: dict[str, Any], **others: Any) -> dict[str, Any]:
    own = {f"model.optimizer.{key}": value for key, value in optimizer.items()}
    return {**own, **{key.replace("__", "."): value for key, value in others.items()}}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resumed_equals_unbroken(overlay: Path, tmp_path: Path, optimizer: dict[str, Any]) -> None:
    _break_and_resume(overlay, tmp_path, _overrides(optimizer))


def test_experts_resumed_equal_unbroken(overlay: Path, tmp_path: Path) -> None:
    experts = {"model__config__experts__count": 3, "model__config__experts__per_token": 2}
    _break_and_resume(overlay, tmp_path, _overrides(OPTIMIZERS["loro"], **experts))


def _break_and_resume(overlay: Path, tmp_path: Path, overrides: dict[str, Any]) -> None:
    overrides = {**overrides, "trainer.max_steps": 8}
    whole = run(RunRequest(tmp_path / "whole", [overlay], overrides))
    request = RunRequest(tmp_path / "broken", [overlay], overrides)
    for batches in (2, 6):  # before the first exact step or new subspace, and right after the second
        with pytest.raises(Interrupted):
            run(request, [StopAfter(batches)])
    resumed = run(request)
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gradient_clip_algorithm", "value"),
        ("gradient_clip_algorithm", "norm"),
        ("precision", "64-true"),
        ("precision", "bf16-true"),
    ],
)
def test_resumed_equals_unbroken_under_terms_of_the_trainer(
    overlay: Path, tmp_path: Path, key: str, value: str
) -> None:
    overrides = {"trainer.max_steps": 8, "trainer.gradient_clip_val": 0.01, f"trainer.{key}": value}
    run(RunRequest(tmp_path / "whole", [overlay], overrides))
    request = RunRequest(tmp_path / "broken", [overlay], overrides)
    with pytest.raises(Interrupted):
        run(request, [StopAfter(6)])
    run(request)
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_clipping_and_bfloat16_work_and_the_checkpoint_is_plain(
    overlay: Path, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    trainer = {"trainer.max_steps": 4, "trainer.gradient_clip_val": 0.1, "trainer.precision": "bf16-mixed"}
    directory = {"trainer.default_root_dir": str(tmp_path / "run"), "checkpoint.every_n_train_steps": 4}
    cli = ElasCLI(command_line([overlay], {**_overrides(optimizer), **trainer, **directory}), run=False)
    assert execute(cli).state == "complete"
    (state,) = torch.load(cli.checkpoint_path, weights_only=True)["optimizer_states"]
    assert len(state["state"]) == len(list(cli.model.parameters()))


def test_another_optimizer_is_refused_when_resuming(overlay: Path, tmp_path: Path) -> None:
    muon = {"name": "muon"}
    with pytest.raises(Interrupted):
        run(RunRequest(tmp_path / "run", [overlay], _overrides(muon)), [StopAfter(3)])
    other = RunRequest(tmp_path / "run", [overlay], _overrides({**muon, "muon_momentum": 0.5}))
    with pytest.raises(UserError, match=r"model\.optimizer\.muon_momentum is 0\.5 but the checkpoint has 0\.95"):
        run(other)
