"""ElasModule: the warm-up, divergence, checkpoints and what it refuses."""

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.data import C4DataModule
from elas_lightning.errors import UserError
from elas_lightning.files import write_atomically
from elas_lightning.nn.config import ModelConfig, SparsityConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.runner import execute
from elas_lightning.training.checkpoints import verify, write_archive
from elas_lightning.training.module import ElasModule


def _cli(overlay: Path, directory: Path, *callbacks: Callback, **overrides: Any) -> ElasCLI:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return ElasCLI(
        command_line([overlay], {**dotted, "trainer.default_root_dir": str(directory)}), run=False, callbacks=callbacks
    )


class _Watch(Callback):
    def __init__(self) -> None:
        self.sparse: list[bool] = []
        self.sparse_when_validating: list[tuple[int, bool]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.sparse.append(pl_module.model.sparsity_active)  # type: ignore[union-attr]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sparse_when_validating.append((trainer.global_step, pl_module.model.sparsity_active))  # type: ignore[union-attr]


def test_dense_warmup_ends_at_its_step_and_validation_follows(overlay: Path, tmp_path: Path) -> None:
    watch = _Watch()
    cli = _cli(overlay, tmp_path / "run", watch, model__config__sparsity__dense_warmup_steps=6)
    execute(cli)
    assert watch.sparse == [False] * 6 + [True] * 6
    assert watch.sparse_when_validating == [(5, False), (10, True), (12, True)]


def test_warmup_counts_optimizer_steps_and_not_batches(overlay: Path, tmp_path: Path) -> None:
    watch = _Watch()
    execute(_cli(overlay, tmp_path / "run", watch, trainer__accumulate_grad_batches=2, trainer__max_steps=6))
    assert watch.sparse == [False] * 8 + [True] * 4


class _Keys(Callback):
    """Notes the key of the first site, and the loss, of each micro-batch."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        sites = [m for m in pl_module.modules() if isinstance(m, SparsitySite) and m.placed]
        self.keys.append(int(sites[0].key))


def test_every_micro_batch_has_random_numbers_of_its_own(overlay: Path, tmp_path: Path) -> None:
    keys = []
    for seed in (0, 1):
        watch = _Keys()
        changes = {"trainer__max_steps": 5, "trainer__accumulate_grad_batches": 2, "seed_everything": seed}
        execute(_cli(overlay, tmp_path / str(seed), watch, model__config__sparsity__method="random", **changes))
        keys += watch.keys
    assert len(keys) == len(set(keys)) == 20


def test_validation_of_a_stochastic_method_does_not_depend_on_the_batch_size(overlay: Path, tmp_path: Path) -> None:
    change = {"model__config__sparsity__method": "mvue", "model__config__sparsity__dense_warmup_steps": 0}
    one = execute(_cli(overlay, tmp_path / "one", **change))
    other = execute(_cli(overlay, tmp_path / "other", data__validation_batch_size=7, **change))
    assert other.metrics["val_loss"] == pytest.approx(one.metrics["val_loss"], rel=1e-6)


def test_training_lowers_the_loss(overlay: Path, tmp_path: Path) -> None:
    result = execute(_cli(overlay, tmp_path / "run", trainer__max_steps=60, model__optimizer__lr=0.03))
    with (tmp_path / "run/curve.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    assert result.metrics["val_perplexity"] < 100


@pytest.mark.parametrize("batch_size", [1, 7])
def test_validation_loss_does_not_depend_on_the_batch_size(overlay: Path, tmp_path: Path, batch_size: int) -> None:
    one = execute(_cli(overlay, tmp_path / "one"))
    other = execute(_cli(overlay, tmp_path / "other", data__validation_batch_size=batch_size))
    assert other.metrics["val_loss"] == pytest.approx(one.metrics["val_loss"], rel=1e-6)
    assert other.metrics["val_bits_per_byte"] == pytest.approx(one.metrics["val_bits_per_byte"], rel=1e-6)


class _Gradients(Callback):
    """Notes the micro-batches of the first step, the weights before it and the gradients that it goes along."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        for name, parameter in pl_module.model.named_parameters():  # type: ignore[union-attr]
            assert parameter.grad is not None
            self.weights[name], self.gradients[name] = parameter.detach().clone(), parameter.grad.clone()


def test_a_step_goes_along_the_mean_of_its_micro_batches_means_over_real_tokens_and_the_balance(
    overlay: Path, tmp_path: Path
) -> None:
    watch = _Gradients()
    experts = {"model__config__experts__count": 3, "model__config__experts__balance": 2.0}
    rows = {"data__batching": "truncate", "data__sequence_length": 100}
    steps = {"trainer__max_steps": 1, "trainer__accumulate_grad_batches": 3, "model__optimizer__warmup_steps": 0}
    cli = _cli(overlay, tmp_path / "run", watch, **rows, **steps, **experts)
    execute(cli)
    real = [int((batch["labels"] != -100).sum()) for batch in watch.batches]
    # so that means over all tokens, over positions and over the step's tokens are others
    assert len(set(real)) == 3
    assert max(real) < 0.9 * watch.batches[0]["labels"].numel()

    model = Llama(cli.model.config)
    model.load_state_dict(watch.weights)
    model.set_sparsity(False)  # in the dense warm-up
    routed: list[torch.Tensor] = []
    for block in model.layers:
        block.mlp.register_forward_pre_hook(lambda mlp, x: routed.append(mlp.router(x[0].flatten(0, 1))))
    losses = [
        F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        for batch in watch.batches
    ]
    shares = [p_TE.argmax(1).bincount(minlength=3) / len(p_TE) for p_TE in routed]
    balance = sum(3 * (share_E * p_TE.mean(0)).sum() for share_E, p_TE in zip(shares, routed, strict=True))
    ((sum(losses) + 2.0 * balance) / 3).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(watch.gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


class _Poison(Callback):
    """Makes a weight infinite before a step, as an overflow would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("inf"))


def test_divergence_is_a_result_with_its_reason(overlay: Path, tmp_path: Path) -> None:
    result = execute(_cli(overlay, tmp_path / "run", _Poison(step=7)))
    assert result.state == "diverged"
    assert "at step 7" in str(result.reason)
    assert result.metrics["val_perplexity"] is None
    assert (tmp_path / "run/result.json").exists()


class _PoisonGradientLater(Callback):
    """Remembers the weights at the step whose loss is not finite."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            pl_module.model.set_sparsity(False)  # type: ignore[union-attr]
            self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}
            pl_module._accumulated_loss = float("nan")


def test_weights_are_untouched_by_the_step_that_diverged(overlay: Path, tmp_path: Path) -> None:
    poison = _PoisonGradientLater()
    cli = _cli(overlay, tmp_path / "run", poison)
    assert execute(cli).state == "diverged"
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, poison.before[name]), name


def test_load_from_checkpoint_gives_the_same_model(overlay: Path, tmp_path: Path) -> None:
    cli = _cli(overlay, tmp_path / "run", checkpoint__every_n_train_steps=12)
    execute(cli)
    again = ElasModule.load_from_checkpoint(cli.checkpoint_path, weights_only=True)
    assert again.config == cli.model.config
    assert again.optimizer == cli.model.optimizer
    again.model.set_sparsity(True)
    cli.model.model.set_sparsity(True)
    ids = torch.arange(32).reshape(2, 16)
    assert torch.equal(again(ids), cli.model(ids))


class _Own(ElasModule):
    """As people write one: with an optimizer of its own, saving its own arguments."""

    def __init__(self, config: ModelConfig, more: int = 1) -> None:
        super().__init__(config)
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_subclass_in_a_plain_trainer(make_data: Callable[..., C4DataModule], tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        ffn="relu2",
        sparsity=SparsityConfig(placement=["ffn_hidden"], dense_warmup_steps=3),
    )
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(_Own(config, more=2), datamodule=make_data(validation_tokens=50))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = _Own.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert again.hparams["more"] == 2
    assert not again.model.sparsity_active  # it is still in its warm-up
    other = replace(config, ffn_storage="recompute")
    assert _Own.load_from_checkpoint(tmp_path / "own.ckpt", config=other, weights_only=True).config == other


class _SavesAtSix(Callback):
    """Notes the steps of validations, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 6 and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated.append(trainer.global_step)


# Lightning knows of a loader's place only, and ours is the data module's
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*dataloader is not resumable"
)
def test_a_plain_trainer_goes_on_in_the_midst_of_an_epoch(
    make_data: Callable[..., C4DataModule], tmp_path: Path
) -> None:
    """Which a limit makes; the stream has none."""
    config = ModelConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, ffn="relu2")
    watch = _SavesAtSix(tmp_path / "six.ckpt")
    for checkpoint in (None, watch.path):
        trainer = L.Trainer(
            max_steps=12, limit_train_batches=4, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[watch],
        )  # fmt: skip
        trainer.fit(_Own(config), datamodule=make_data(validation_tokens=50), ckpt_path=checkpoint, weights_only=True)
    assert watch.validated == [4, 8, 12, 8, 12]


def test_another_trainer_measures_the_model_that_was_trained(overlay: Path, tmp_path: Path) -> None:
    cli = _cli(overlay, tmp_path / "run")
    trained = execute(cli)
    other = _cli(overlay, tmp_path / "other").trainer  # which has taken no step and would be in the warm-up
    other.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert cli.model.model.sparsity_active
    assert other.callback_metrics["val_loss"].item() == trained.metrics["val_loss"]
    logits = other.predict(cli.model, dataloaders=cli.datamodule.val_dataloader())
    assert logits is not None
    assert logits[0].shape == (4, 16, 300)  # type: ignore[union-attr]


def test_without_a_trainer_nothing_counts_the_steps(overlay: Path, tmp_path: Path) -> None:
    module = _cli(overlay, tmp_path / "run").model
    with pytest.raises(UserError, match=r"trains in a lightning Trainer alone.*train elas_lightning\.Llama"):
        module.training_step({"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, 0)


def test_a_fast_dev_run_may_be_shorter_than_the_warm_up(overlay: Path, tmp_path: Path) -> None:
    assert execute(_cli(overlay, tmp_path / "run", trainer__fast_dev_run=True)).metrics["tokens"] > 0


def test_a_checkpoint_of_another_model_is_refused_by_field(overlay: Path, tmp_path: Path) -> None:
    first = _cli(overlay, tmp_path / "run", checkpoint__every_n_train_steps=12)
    execute(first)
    other = _cli(overlay, tmp_path / "other", model__config__ffn_rank=8)
    with pytest.raises(UserError, match=r"model\.config\.ffn_rank is 8 but the checkpoint has 4"):
        execute(other, ckpt_path=first.checkpoint_path)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_of_before_a_field_is_gone_on_from(overlay: Path, tmp_path: Path) -> None:
    first = _cli(overlay, tmp_path / "run", checkpoint__every_n_train_steps=6)
    execute(first)
    checkpoint = torch.load(first.checkpoint_path, weights_only=True)
    del checkpoint["hyper_parameters"]["config"]["experts"]
    older = tmp_path / "older.ckpt"
    write_atomically(older, partial(write_archive, checkpoint), verify)
    execute(_cli(overlay, tmp_path / "other"), ckpt_path=older)
    assert ElasModule.load_from_checkpoint(older, weights_only=True).config == first.model.config


def test_too_small_a_vocabulary_is_refused(overlay: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.config\.vocab_size is 128 but the tokenizer .* has 300"):
        execute(_cli(overlay, tmp_path / "run", model__config__vocab_size=128))


def test_a_run_without_a_length_is_refused(overlay: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps is not set"):
        execute(_cli(overlay, tmp_path / "run", trainer__max_steps=-1))


# inductor imports what torch itself has deprecated
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.slow
def test_compiled_training_gives_the_eager_losses(overlay: Path, tmp_path: Path) -> None:
    eager = execute(_cli(overlay, tmp_path / "eager"))
    compiled = execute(_cli(overlay, tmp_path / "compiled", model__compile=True))
    assert compiled.metrics["val_loss"] == pytest.approx(eager.metrics["val_loss"], rel=1e-4)
