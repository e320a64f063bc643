"""The LightningModule: steps, metrics and logging; the model itself lives in ``elas_lightning.nn``."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.folder import starting_weights
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.weights.rule import Place
from elas_lightning.training.checkpoints import not_finite
from elas_lightning.training.folder_checkpoints import files_of
from elas_lightning.training.interruption import RunEnded
from elas_lightning.training.metrics import TokenLoss
from elas_lightning.training.optimizers import OptimizerConfig, build_optimizer
from elas_lightning.training.optimizers.whole import whole
from elas_lightning.training.sharding import check_strategy, shard_model
from elas_lightning.training.weights import WeightSchedule


def _sum_nll(model: Llama, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return model.loss(input_ids, labels)


def _plain(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With dataclasses as dicts: a subclass that saves its own arguments has them, and so has who loads with others."""
    return {
        key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for key, value in hyper_parameters.items()
    }


def _differences(prefix: str, mine: dict[str, Any], saved: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Each field that differs from what a checkpoint holds, and how to say so.

    A field that it does not hold is of a later version of the project, and at its default leaves all as it was.
    """
    for key, theirs in (saved or {}).items():
        if key in mine and mine[key] != theirs:
            yield key, f"{prefix}.{key} is {mine[key]!r} but the checkpoint has {theirs!r}"


def _count_micro_batches(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Count the micro-batches behind a checkpoint as this run would have.

    On another number of devices a step has another number of them, and Lightning tells by the count where a step ends.
    """
    if "loops" not in checkpoint:  # weights alone, which Lightning refuses to go on from
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    total, current = progress["total"], progress["current"]
    behind = checkpoint["global_step"] * accumulate_grad_batches
    if total["ready"]:  # a trainer of one's own may limit epochs: of those before this one, the same share
        earlier = (total["ready"] - current["ready"]) * behind // total["ready"]
        current.update(dict.fromkeys(current, behind - earlier))
    total.update(dict.fromkeys(total, behind))


class ElasModule(L.LightningModule):
    """Next-token pre-training of a :class:`~elas_lightning.nn.llama.Llama`.

    A batch is a dict of ``input_ids (B, T)``, ``labels (B, T)`` (aligned with the positions that predict
    them, -100 where there is nothing to predict) and ``target_bytes (B,)``.

    Args:
        config: The model.
        optimizer: The optimizer and its schedule.
        compile: Run training and validation through ``torch.compile``: decoder, head and loss in one graph.
            Lightning's logging cannot be traced.
        init_from: Folder of ``elas export --form factors`` or ``elas import`` whose weights training begins with.
            It stays where it is until the run has ended: a resumed run checks it again, before its checkpoint's
            weights take over.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        compile: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        # load_from_checkpoint passes back what was saved below: plain types, since a dataclass in a checkpoint
        # can be written but not read again with weights_only
        if isinstance(config, Mapping):
            config = ModelConfig.from_mapping(config)
        if isinstance(optimizer, Mapping):
            optimizer = OptimizerConfig(**optimizer)
        self.save_hyperparameters(
            {"config": asdict(config), "optimizer": asdict(optimizer), "compile": compile, "init_from": init_from},
            logger=False,
        )
        self.config = config
        self.optimizer = optimizer
        self.init_from = init_from
        self.model = Llama(config)
        self._weights = WeightSchedule(self.model)
        # a function and no module, so that checkpoints keep one set of names
        self._loss = torch.compile(_sum_nll) if compile else _sum_nll
        self.val_metric = TokenLoss()
        self._accumulated_loss: Tensor | float = 0.0
        self._weights_step = 0

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As Lightning has it, of one file.

        Raises:
            UserError: The path is a folder, a sharded checkpoint's or a run's, or a file of a sharded checkpoint.
        """
        path = Path(checkpoint_path) if isinstance(checkpoint_path, str | os.PathLike) else None
        if path is not None and (path.is_dir() or files_of(path.parent)):
            raise UserError(
                f"{path} is {'a folder' if path.is_dir() else 'a part of a sharded checkpoint'}, of which "
                "load_from_checkpoint reads nothing: elas_lightning.inference.load.load_model takes the folder of a "
                "sharded checkpoint or of a run, as `elas eval` and `elas export` do"
            )
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of token ids ``(B, T)``."""
        logits: Tensor = self.model(input_ids)
        return logits

    def setup(self, stage: str) -> None:
        """Refuse a corpus whose token ids the model has no rows for, and what several processes cannot do."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and data.vocab_size > self.config.vocab_size:
            raise UserError(
                f"model.config.vocab_size is {self.config.vocab_size} but the tokenizer of data.source="
                f"{data.source} has {data.vocab_size} ids: set model.config.vocab_size to {data.vocab_size} "
                "(the overlays in experiments/data/ do)"
            )
        check_strategy(self.trainer.strategy, self.config)
        if self.init_from is not None and stage == "fit":
            self._begin_with(Path(self.init_from), getattr(data, "text_tokenizer", None))
        weights = self.config.weights
        if weights.method == "relora" and weights.relora_full_rank_cycles and self.trainer.world_size > 1:
            raise UserError(
                f"model.config.weights.relora_full_rank_cycles is {weights.relora_full_rank_cycles} but "
                f"{self.trainer.world_size} processes share the run, which agree once on what has gradients: "
                "set it to 0 or train on one device"
            )
        # before a strategy asks what has gradients
        self._weights.enter(self._place())

    def configure_model(self) -> None:
        """Shard the model where the strategy has made a mesh for it."""
        if self.device_mesh is not None:
            compile, self._loss = bool(self.hparams["compile"]), _sum_nll
            mesh, precision = self.device_mesh["data_parallel"], str(self.trainer.precision)
            shard_model(self.model, mesh, precision, compile=compile)

    def _begin_with(self, folder: Path, tokenizer: Any) -> None:
        """Take over the weights of a folder, which must be of the same model and of the same ids."""
        weights, theirs = starting_weights(folder, self.config)
        if tokenizer is not None and tokenizer.fingerprint != theirs:
            raise UserError(
                f"model.init_from={folder} was made with another tokenizer than data.tokenizer gives, so its ids "
                f"mean other text: set data.tokenizer to {folder / 'tokenizer.json'}"
            )
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"the weights in model.init_from={folder} do not fit their configuration: {error}"
            ) from error

    @property
    def sparse_phase(self) -> bool:
        """Whether the dense warm-up is over: a function of the global step alone, so a resume cannot lose it."""
        # a trainer that validates what another has trained, or a checkpoint, is at step 0 itself
        step = max(self.global_step, self._weights_step)
        return step >= self.config.sparsity.dense_warmup_steps

    def _place(self, step: int | None = None) -> Place:
        if self._trainer is None:
            raise UserError(
                "an ElasModule trains in a lightning Trainer alone, whose steps decide on its warm-up and its weights: "
                "in Fabric, or a loop of your own, train elas_lightning.Llama"
            )
        step = max(self.global_step, self._weights_step) if step is None else step
        return Place(step, self.trainer.max_steps, self.optimizer.restart_every)

    def on_train_start(self) -> None:
        """Take up the weights' phase where a checkpoint left it."""
        self._weights.enter(self._place())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Mean loss over the batch's target tokens, to which routers add theirs: of those only backward knows."""
        self.model.set_sparsity(self.sparse_phase)
        self._weights.see(batch["input_ids"], self._place(self.global_step))
        if self.config.sparsity.stochastic:
            # of the place in training alone, so that a resume draws what an unbroken run draws
            self.model.set_noise(torch.initial_seed(), self.global_step, batch_idx, self.global_rank)
        nll, tokens = self._loss(self.model, batch["input_ids"], batch["labels"])
        loss = nll / tokens.clamp(min=1)
        self._accumulated_loss = self._accumulated_loss + loss.detach()
        self.log("train_loss", loss.detach(), prog_bar=True)
        return {"loss": loss + self.model.balance_loss(), "nll": nll.detach(), "tokens": tokens}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop on a loss that is not finite, on all ranks together, while the weights are still good."""
        loss = float(self._accumulated_loss)
        self._accumulated_loss = 0.0
        if self.trainer.strategy.reduce_boolean_decision(not math.isfinite(loss), all=False):
            raise RunEnded("diverged", f"the training loss is {loss} at step {self.global_step}")

    def on_validation_epoch_start(self) -> None:
        """Validate the model that is being trained: dense during the dense warm-up, sparse after it."""
        self.model.set_sparsity(self.sparse_phase)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the token-weighted metrics."""
        nll, tokens = self._loss(self.model, batch["input_ids"], batch["labels"])
        self.val_metric.update(nll, tokens, batch["target_bytes"].sum())

    def on_validation_epoch_end(self) -> None:
        """Log ``val_loss``, ``val_perplexity``, ``val_bits_per_byte``, the GaLore-protocol number, ``val_batches``."""
        values = self.val_metric.compute()
        self.val_metric.reset()
        # already the same on every rank; said again, since Lightning warns where it is not told
        self.log_dict({f"val_{name}": value for name, value in values.items()}, sync_dist=True)
        self.log("val_ppl", values["perplexity"], prog_bar=True, logger=False, sync_dist=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Logits ``(B, T, V)`` of a batch's ``input_ids``."""
        logits: Tensor = self(batch["input_ids"])
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimizer and its schedule over ``trainer.max_steps``."""
        steps = self.trainer.max_steps
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            # tries the code on a few batches, of a run that is long enough for its warm-up
            steps = max(steps, self.optimizer.warmup_steps + 1)
        optimizer, schedule = build_optimizer(self.model, self.optimizer, steps, fused=not self._scaled)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _scaled(self) -> bool:
        """Float16 alone has a gradient scaler, which a fused update undoes too late for clipping."""
        return str(self.trainer.precision) == "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, which refuses a fused optimizer under bfloat16 too, where nothing is scaled."""
        if self._scaled:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            parameters = [p for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, whole(norm))
        self._weights.add_decay()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then let the weights' rules act: before anything is saved or validated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        place = self._place(self.global_step + 1)  # Lightning counts the step when this hook is over
        sum_over_processes = partial(self.trainer.strategy.reduce, reduce_op="sum")
        self._weights.after_step(self.trainer.optimizers[0], place, sum_over_processes)
        self._weights_step = place.step

    def _terms(self) -> dict[str, Any]:
        """What the trainer decides about the numbers, besides the order of the data."""
        trainer = self.trainer
        algorithm = trainer.gradient_clip_algorithm
        return {
            "max_steps": trainer.max_steps,  # the schedule's length
            "precision": str(trainer.precision),
            "gradient_clip_val": trainer.gradient_clip_val,
            # Lightning's enum could be written, but not read again with weights_only
            "gradient_clip_algorithm": None if algorithm is None else str(algorithm.value),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite, on all ranks together; note what the trainer decides."""
        broken = not_finite(self.named_parameters())
        if self.trainer.strategy.reduce_boolean_decision(broken is not None, all=False):
            raise RunEnded("diverged", f"{broken or 'a weight'} is not finite at step {self.global_step}")
        checkpoint["trainer"] = self._terms()
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = _plain(checkpoint["hyper_parameters"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the step; refuse a checkpoint of another model, naming each field that differs."""
        self._weights_step = checkpoint.get("global_step", 0)
        saved = _plain(checkpoint.get("hyper_parameters", {}))
        different = [
            difference
            for key, difference in _differences("model.config", asdict(self.config), saved.get("config"))
            if key not in ("backend", "ffn_storage", "checkpointing")
        ]
        if self._trainer is not None and self.trainer.training:
            _count_micro_batches(checkpoint, self.trainer.accumulate_grad_batches)
            # the optimizer's state holds its settings too, and would override the command line's in silence
            mine = asdict(self.optimizer)
            different += [text for _, text in _differences("model.optimizer", mine, saved.get("optimizer"))]
            terms = checkpoint.get("trainer")
            different += [text for _, text in _differences("trainer", self._terms(), terms)]
        if different:
            raise UserError(
                "; ".join(different) + ": resume with the checkpoint's own configuration or start a new run"
            )
        self.model.set_sparsity(self.sparse_phase)  # for who uses it without a trainer
        if other := self.state_dict().keys() ^ checkpoint["state_dict"].keys():
            raise UserError(f"the checkpoint is of another model: {min(other)} is a weight of one of the two alone")
        if self._trainer is not None and self.trainer.training and "optimizer_states" not in checkpoint:
            raise UserError(
                "the checkpoint has weights alone (checkpoint.save_weights_only): training cannot go on from it"
            )
        if self._trainer is not None and str(self.trainer.precision) == "64-true":
            self.double()  # Lightning does so behind the loading, which then would round the weights to float32
