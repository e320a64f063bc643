"""What a run leaves on disk while it goes: the loss curve and the sparsity telemetry."""

import csv
import io
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from elas_lightning.files import not_written, write_atomically
from elas_lightning.nn.account import flops_per_token
from elas_lightning.nn.telemetry import Selections, layer_statistics
from elas_lightning.ranks import of_every_rank, rank_and_world_size
from elas_lightning.training.data_wait import DataWait
from elas_lightning.training.energy import EnergyMeter
from elas_lightning.training.hardware import PeakMemory, peak_flops
from elas_lightning.training.interruption import is_between_steps
from elas_lightning.training.module import ElasModule
from elas_lightning.training.sharding import whole_model
from elas_lightning.training.spikes import Spikes

CURVE_FIELDS = (
    "step", "tokens", "seconds", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr",
    "tokens_per_second", "loss_spike", "data_wait_share",
)  # fmt: skip
TELEMETRY_FIELDS = (
    "step", "layer", "site", "natural_zeros", "dropped_energy", "dropped_nonzeros", "mask_drift",
    "gradient_norm_ste", "gradient_norm_masked", "gradient_cosine", "gradient_bias", "effective_rank_up",
    "effective_rank_down", "effective_rank_hidden", "busiest_expert",
)  # fmt: skip
_FILES = {"curve.csv": CURVE_FIELDS, "telemetry.csv": TELEMETRY_FIELDS}


@dataclass
class _Window:
    """What this process adds up from one row of the curve to the next; losses stay on the device until then."""

    nll: Tensor | float = 0.0
    tokens: Tensor | int = 0
    joules: float = 0.0
    waited: float = 0.0

    def plain(self) -> list[float]:
        return [float(self.nll), int(self.tokens), self.joules, self.waited]


class RunRecorder(L.Callback):
    """Writes ``curve.csv`` and ``telemetry.csv`` into the run's directory, rank 0 only.

    Times exclude validation. A resumed run goes on with the files: rows that were written after the checkpoint are cut
    off first, since those steps are about to be taken again, and so is a row that a kill has torn. A window that the
    checkpoint cuts through is finished by the resumed run. What the 2:4 step chose at the last look is not kept
    in checkpoints: the first row after a resume has no ``mask_drift``.

    Telemetry looks at the model in float32 and without autocast, leaves no gradients and draws no random numbers.

    Args:
        directory: The run's directory.
        telemetry_rows: Sequences of the first validation batch that the telemetry looks at; 0 turns it off.
    """

    def __init__(self, directory: Path, telemetry_rows: int = 4) -> None:
        self.directory = directory
        self.telemetry_rows = telemetry_rows
        self.tokens = 0
        self.seconds = 0.0
        self.joules: float | None = None
        self.telemetry_seconds = 0.0
        self.flops_per_token = 0
        self.peak_memory: PeakMemory | None = None
        self.last_train_loss: float | None = None
        self._rate: float | None = None  # that the last step was taken at
        self.last_validated_step = -1
        self._recorded_step = -1  # the last validation that has its rows
        self._rows: dict[str, int] | None = None  # of each file at the checkpoint that was loaded
        self._opened = False
        self._window_start: float | None = None  # None while nothing is trained
        self._window_seconds = 0.0
        self._window = _Window()
        self._waited_before = 0.0
        self.data_wait = DataWait()
        self._data: Any = None
        self._probe: dict[str, Tensor] | None = None
        self._selections: Selections = {}
        self._energy: EnergyMeter | None = None
        self.spikes = Spikes()

    # sums travel with the checkpoint; the rows are in the files
    def state_dict(self) -> dict[str, Any]:
        self._measure()
        for name in self._rows or ():
            _sync(self.directory / name)
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "joules": self.joules,
            "waited": self.data_wait.seconds,
            "last_train_loss": self.last_train_loss,
            "rate": self._rate,
            "recorded_step": self._recorded_step,
            "window_seconds": self._window_seconds,
            "windows": of_every_rank(self._window.plain()),
            "rows": self._rows,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.joules = state_dict["joules"]
        self.data_wait.seconds = state_dict["waited"]
        self.last_train_loss = state_dict["last_train_loss"]
        self._rate = state_dict.get("rate")  # older checkpoints have none
        self._recorded_step = state_dict["recorded_step"]
        self._window_seconds = state_dict["window_seconds"]
        self._rows = state_dict["rows"]
        windows, (mine, world_size) = state_dict["windows"], rank_and_world_size()
        if len(windows) != world_size:  # only their sum is ever looked at
            windows = [[sum(parts) for parts in zip(*windows, strict=True)]]
            windows += [_Window().plain()] * (world_size - 1)
        self._window = _Window(*windows[mine])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ElasModule)
        self._data = trainer.datamodule  # type: ignore[attr-defined]
        self.flops_per_token = flops_per_token(pl_module.config, self._data.sequence_length)["total"]
        self.peak_memory = PeakMemory(pl_module.device)
        self.peak_memory.start()
        self._open_files(trainer)
        self._energy = EnergyMeter(pl_module.device)
        self.start_window()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._window_start = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a run that was stopped after its last step has nothing left to train, and on_train_start is not called
        self._open_files(trainer)

    def _open_files(self, trainer: L.Trainer) -> None:
        """Begin the files, or cut them back to the rows of the checkpoint."""
        if trainer.is_global_zero and not self._opened:
            self._opened = True
            kept = {
                name: _keep_rows(self.directory / name, fields, (self._rows or {}).get(name, 0))
                for name, fields in _FILES.items()
            }
            self._rows = {name: len(rows) for name, rows in kept.items()}
            for row in kept["curve.csv"]:
                if row["train_loss"]:
                    self.spikes.add(float(row["train_loss"]))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        # now, since at the end of the batch the schedule has gone on to the next step's
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # stays on the device: reading it out at each step would make the GPU wait for the host
        self._window.nll = self._window.nll + outputs["nll"]
        self._window.tokens = self._window.tokens + outputs["tokens"]
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_last = 0 < trainer.max_steps <= trainer.global_step
        if is_between_steps(trainer) and (trainer.global_step % every == 0 or is_last):
            self._close_window(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._close_window(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and self.telemetry_rows:
            self._probe = {key: batch[key][: self.telemetry_rows] for key in ("input_ids", "labels")}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ElasModule)
        self.last_validated_step = trainer.global_step
        # a run that was stopped behind its last validation validates again, for its result
        recorded, self._recorded_step = self._recorded_step == trainer.global_step, trainer.global_step
        if trainer.is_global_zero and not recorded:
            measured = {k: v.item() for k, v in trainer.callback_metrics.items() if k in CURVE_FIELDS and "val_" in k}
            self._write("curve.csv", CURVE_FIELDS, [{**self._position(trainer), **measured}])
        if self._probe is not None and not recorded:
            began = time.perf_counter()
            model = whole_model(pl_module.model, trainer.is_global_zero)
            if model is not None:
                rows = layer_statistics(model, **self._probe, selections=self._selections)
                self._write("telemetry.csv", TELEMETRY_FIELDS, [{"step": trainer.global_step, **row} for row in rows])
            self.telemetry_seconds += time.perf_counter() - began
        self.start_window()

    def start_window(self) -> None:
        """Begin to measure; what has gone by (a validation) is not training's."""
        if self._energy is not None:
            self._energy.read()
        if self._data is not None:
            self._waited_before = self._data.waited_seconds
        self._window_start = time.perf_counter()

    def _measure(self) -> None:
        """Add what has gone by since the last look to the window."""
        if self._window_start is None:
            return
        now = time.perf_counter()
        self._window_seconds += now - self._window_start
        self._window_start = now
        self._window.joules += (self._energy.read() if self._energy else None) or 0.0
        waited = self._data.waited_seconds
        self._window.waited += waited - self._waited_before
        self._waited_before = waited

    def _close_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure()
        elapsed, self._window_seconds = self._window_seconds, 0.0
        counts = torch.as_tensor(self._window.plain(), dtype=torch.float64)
        self._window = _Window()
        sums = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum")
        nll, tokens, drawn, waited = sums.tolist()
        if not tokens:
            return
        if drawn:
            self.joules = (self.joules or 0.0) + drawn
        self.tokens += int(tokens)
        self.seconds += elapsed
        self.last_train_loss = nll / tokens
        rate = tokens / elapsed
        share = self.data_wait.add(waited / trainer.world_size, elapsed)
        if trainer.is_global_zero:
            row = {
                "train_loss": self.last_train_loss,
                "lr": self._rate,
                "tokens_per_second": rate,
                "loss_spike": int(self.spikes.add(self.last_train_loss)),
                "data_wait_share": round(share, 4),
            }
            self._write("curve.csv", CURVE_FIELDS, [{**self._position(trainer), **row}])
        figures = {"tokens_per_second": rate, "tokens": float(self.tokens), "data_wait_share": share}
        peak = peak_flops(pl_module.device, str(trainer.precision))
        if peak is not None:
            figures["model_flops_utilisation"] = rate * self.flops_per_token / (peak * trainer.world_size)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)

    def _position(self, trainer: L.Trainer) -> dict[str, float]:
        return {"step": trainer.global_step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}

    def _write(self, name: str, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        path = self.directory / name
        if not path.exists():  # validation alone, without a fit before it, leaves no files
            return
        try:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, fields).writerows(rows)
        except OSError as error:
            raise not_written(path, error) from error
        if self._rows is not None:
            self._rows[name] += len(rows)


def _keep_rows(path: Path, fields: tuple[str, ...], count: int) -> list[dict[str, str]]:
    """Begin a CSV file, or cut an existing one back to its first rows, which are returned."""
    kept: list[dict[str, str]] = []
    if count and path.exists():
        with path.open(newline="") as file:
            whole = itertools.takewhile(lambda row: None not in row.values(), csv.DictReader(file))
            kept = list(itertools.islice(whole, count))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(kept)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    return kept


def _sync(path: Path) -> None:
    """Force a file's rows to the disk: a checkpoint that counts them must not be there without them."""
    if path.exists():
        with path.open("a") as file:
            os.fsync(file.fileno())
