"""The progress bar of a run: Rich's, counting steps."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's Rich bar under another title (an endless stream has no epochs), without the loggers' version."""

    @property
    def total_train_batches(self) -> int:
        """Steps of the whole run: Lightning's own are those that are left, beside a count that goes on."""
        return self.trainer.max_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        """What stands beside the bar: training loss and validation perplexity."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
