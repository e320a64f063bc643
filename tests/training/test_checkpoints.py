"""When a run saves itself, whatever ``checkpoint.*`` says: only where it can go on exactly."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.runner import execute
from elas_lightning.training.checkpoints import read


class _Places(Callback):
    """Notes each checkpoint: steps taken, and micro-batches of the data behind it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.seen.append((trainer.global_step, trainer.datamodule.state_dict()["next_micro_batch"]))  # type: ignore[attr-defined]


def _places(overlay: Path, directory: Path, **changes: Any) -> list[tuple[int, int]]:
    places = _Places()
    own = {"trainer.default_root_dir": str(directory)}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    execute(ElasCLI(command_line([overlay], {**own, **changes}), run=False, callbacks=[places]))
    return places.seen


@pytest.mark.parametrize(
    "when",
    [
        {"checkpoint__every_n_train_steps": 1, "checkpoint__monitor": "val_loss"},
        {"checkpoint__every_n_train_steps": None, "checkpoint__every_n_epochs": 1},
    ],
    ids=["monitor", "every-validation"],
)
def test_a_validation_in_the_midst_of_a_step_saves_nothing(overlay: Path, tmp_path: Path, when: dict[str, Any]) -> None:
    """Every other validation comes after the first of two micro-batches, which going on would leave out."""
    seen = _places(
        overlay,
        tmp_path / "run",
        trainer__accumulate_grad_batches=2,
        trainer__val_check_interval=3,
        trainer__max_steps=6,
        **when,
    )
    assert seen
    assert all(micro_batches == 2 * steps for steps, micro_batches in seen), seen


@pytest.mark.parametrize("every", [5, 6, 12, 100])
def test_the_last_step_is_saved_once_wherever_the_rhythm_falls(overlay: Path, tmp_path: Path, every: int) -> None:
    seen = _places(overlay, tmp_path / "run", checkpoint__every_n_train_steps=every)
    assert [steps for steps, _ in seen] == [*range(every, 12, every), 12]
    assert read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 12


def test_what_is_not_to_be_saved_is_not_saved_at_the_end(overlay: Path, tmp_path: Path) -> None:
    assert _places(overlay, tmp_path / "run", checkpoint__save_top_k=0) == []
