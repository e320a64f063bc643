"""The progress bar counts the steps of the whole run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.training.progress import StepProgressBar


def test_a_resumed_run_is_shown_as_far_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr(RichProgressBar, "_update", lambda self, bar, current, **_: shown.append(current))
    monkeypatch.setattr(RichProgressBar, "_update_metrics", lambda *_: None)
    bar = StepProgressBar()
    bar.disable()
    trainer: Any = SimpleNamespace(max_steps=360, global_step=290)
    bar._trainer = trainer
    bar.on_train_batch_end(trainer, trainer, None, None, batch_idx=579)  # of two micro-batches a step
    assert (shown, bar.total_train_batches) == ([290], 360)


def test_a_bar_of_the_users_takes_its_place(overlay: Path, tmp_path: Path) -> None:
    shown = command_line([overlay], {"trainer.default_root_dir": str(tmp_path), "trainer.enable_progress_bar": True})
    assert isinstance(ElasCLI(shown, run=False).trainer.progress_bar_callback, StepProgressBar)
    own = TQDMProgressBar()
    assert ElasCLI(shown, run=False, callbacks=[own]).trainer.progress_bar_callback is own
