"""What a run leaves on disk while it goes: the loss curve and the sparsity telemetry."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.telemetry import sparsity_statistics
from elas_lightning.training.hardware import PeakMemory, peak_flops
from elas_lightning.training.module import ElasModule

CURVE_FIELDS = (
    "step", "tokens", "seconds", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr",
    "tokens_per_second",
)  # fmt: skip
TELEMETRY_FIELDS = ("step", "layer", "site", "natural_zeros", "dropped_energy", "dropped_nonzeros")


class RunRecorder(L.Callback):
    """Writes ``curve.csv`` and ``telemetry.csv`` into the run's directory, rank 0 only.

    Times exclude validation. A resumed run goes on with the files: rows past the checkpoint's step are cut
    off first, since those steps are about to be taken again.

    Args:
        directory: The run's directory.
        telemetry_rows: Sequences of the first validation batch that the sparsity telemetry looks at.
    """

    def __init__(self, directory: Path, telemetry_rows: int = 4) -> None:
        self.directory = directory
        self.telemetry_rows = telemetry_rows
        self.tokens = 0
        self.seconds = 0.0
        self.flops_per_token = 0
        self.peak_memory: PeakMemory | None = None
        self.last_train_loss: float | None = None
        self.last_validated_step = -1
        self._window_start = 0.0
        self._window_nll: Tensor | float = 0.0
        self._window_tokens: Tensor | int = 0
        self._probe: Tensor | None = None

    # tokens and seconds travel with the checkpoint; the rows are in the files
    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ElasModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.flops_per_token = flops_per_token(pl_module.config, data.sequence_length)["total"]
        self.peak_memory = PeakMemory(pl_module.device)
        self.peak_memory.start()
        if trainer.is_global_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            for name, fields in (("curve.csv", CURVE_FIELDS), ("telemetry.csv", TELEMETRY_FIELDS)):
                _keep_rows_until(self.directory / name, fields, trainer.global_step)
        self._window_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # stays on the device: reading it out at each step would make the GPU wait for the host
        self._window_nll = self._window_nll + outputs["nll"]
        self._window_tokens = self._window_tokens + outputs["tokens"]
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if stepped and (trainer.global_step % every == 0 or _is_done(trainer)):
            self._close_window(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._close_window(trainer, pl_module)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._probe = batch["input_ids"][: self.telemetry_rows]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ElasModule)
        self.last_validated_step = trainer.global_step
        if trainer.is_global_zero:
            measured = {
                k: v.item() for k, v in trainer.callback_metrics.items() if k in CURVE_FIELDS and "val_" in k
            }
            self._write("curve.csv", CURVE_FIELDS, [{**self._position(trainer), **measured}])
            if self._probe is not None:
                rows = sparsity_statistics(pl_module.model, self._probe)
                self._write(
                    "telemetry.csv", TELEMETRY_FIELDS, [{"step": trainer.global_step, **row} for row in rows]
                )
        self._window_start = time.perf_counter()

    def _close_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = torch.as_tensor([float(self._window_nll), float(self._window_tokens)], dtype=torch.float64)
        nll, tokens = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum").tolist()
        if not tokens:
            return
        elapsed = time.perf_counter() - self._window_start
        self.tokens += int(tokens)
        self.seconds += elapsed
        self.last_train_loss = nll / tokens
        rate = tokens / elapsed
        if trainer.is_global_zero:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            row = {"train_loss": self.last_train_loss, "lr": lr, "tokens_per_second": rate}
            self._write("curve.csv", CURVE_FIELDS, [{**self._position(trainer), **row}])
        figures = {"tokens_per_second": rate, "tokens": float(self.tokens)}
        peak = peak_flops(pl_module.device, str(trainer.precision))
        if peak is not None:
            figures["model_flops_utilisation"] = rate * self.flops_per_token / (peak * trainer.world_size)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self._window_nll, self._window_tokens = 0.0, 0
        self._window_start = time.perf_counter()

    def _position(self, trainer: L.Trainer) -> dict[str, float]:
        return {"step": trainer.global_step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}

    def _write(self, name: str, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        path = self.directory / name
        if not path.exists():  # validation alone, without a fit before it, leaves no files
            return
        with path.open("a", newline="") as file:
            csv.DictWriter(file, fields).writerows(rows)


def _is_done(trainer: L.Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step


def _keep_rows_until(path: Path, fields: tuple[str, ...], step: int) -> None:
    """Start a CSV file, or cut an existing one back to the rows of the steps that count."""
    kept = []
    if step > 0 and path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(kept)
