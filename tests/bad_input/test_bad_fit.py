"""``elas fit`` and ``validate``: overlays, keys, values, devices, corpora and checkpoints that will not do."""

from typing import Any

import pytest

FIT = ("fit", "--config", "run.yaml")


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (None, "wrong.yaml"),
        ("model: [1, 2", "wrong.yaml…YAML"),
        ("- model\n- data\n", "wrong.yaml…mapping"),
        ("just a sentence\n", "wrong.yaml…mapping"),
        (b"\xff\xfe\x00binary\x80", "wrong.yaml"),
        ("model: {config: {ffn_rank: 4}}\nmodle: {}\n", "modle"),
        ("model: {config: 7}\n", "model.config"),
        ("model: {config: {experts: 7}}\n", "wrong.yaml…model.config.experts"),
        ("model: {optimizer: {lr: [1, 2]}}\n", "lr"),
        ("trainer: 3\n", "trainer"),
        ("data: {batch_size: many}\n", "data.batch_size"),
        ("!!python/object:os.system {}\n", "wrong.yaml"),
    ],
    ids=["missing", "not-yaml", "list", "text", "binary", "unknown-key", "config-7", "experts-7", "lr-list",
         "trainer-3", "batch-many", "python-tag"],
)  # fmt: skip
def test_overlays(place: Any, content: Any, saying: str) -> None:
    if content is not None:
        place.write("wrong.yaml", content)
    place.refuses(*FIT, "--config", "wrong.yaml", saying=saying)


def test_an_overlay_that_is_a_folder(place: Any) -> None:
    place.refuses(*FIT, "--config", "experiments", saying="experiments")


def test_an_overlay_that_is_empty_says_what_is_missing(place: Any) -> None:
    place.refuses("fit", "--config", place.write("empty.yaml", ""), saying="stack a size overlay")


VALUES = {
    "--model.config.ffn=gelu3": "ffn…gelu3",
    "--model.config.num_layers=0": "num_layers",
    "--model.config.num_layers=-2": "num_layers",
    "--model.config.hidden_size=2.5": "hidden_size",
    "--model.config.attention_rank=1000": "attention_rank",
    "--model.config.vocab_size=nan": "vocab_size",
    "--model.config.sparsity.placement=[nowhere]": "placement",
    "--model.config.sparsity.dense_warmup_steps=-4": "dense_warmup_steps",
    "--model.config.sparsity.patern=x": "model.config.sparsity.patern",
    "--model.config.backend=cusparselt": "backend 'cusparselt' cannot run here",
    "--model.config.backend=tpu": "backend",
    "--model.config.checkpointing=some": "checkpointing",
    "--model.optimizer.name=sgdm": "optimizer",
    "--model.optimizer.lr=nan": "lr",
    "--model.optimizer.lr=.inf": "lr",
    "--model.optimizer.lr=0": "lr",
    "--model.optimizer.warmup_steps=-1": "warmup_steps",
    "--model.optimizer.warmup_steps=1000": "warmup_steps",
    "--model.optimizer.weight_decay=-0.1": "weight_decay",
    "--model.optimizer.weight_decay=.inf": "weight_decay is inf…finite",
    "--model.optimizer.betas=[0.9, 1.5]": "betas",
    "--model.nothing=1": "model.nothing",
    "--nothing=1": "--nothing=1…elas fit --help",
    "--seed_everything=-1": "seed_everything",
    "--seed_everything=false": "seed_everything is False…whole number",
    "--seed_everything=seven": "seed_everything",
    "--data.batch_size=0": "data.batch_size",
    "--data.batch_size=-3": "data.batch_size",
    "--data.sequence_length=0": "data.sequence_length",
    "--data.sequence_length=1": "data.sequence_length",
    "--data.source=disk": "data.source",
    "--data.batching=bag": "data.batching",
    "--data.num_workers=-1": "data.num_workers",
    "--data.lanes=0": "data.lanes",
    "--data.shuffle_block=0": "data.shuffle_block",
    "--data.validation_tokens=0": "data.validation_tokens",
    "--data.validation_batch_size=0": "data.validation_batch_size",
    "--data.path=null": "data.path",
    "--data.path=run.yaml": "data.path…run.yaml",
    "--data.tokenizer=run.yaml": "run.yaml",
    "--data.tokenizer=experiments": "experiments",
    "--data.cache_dir=run.yaml": "run.yaml",
    "--data.source=tokens": "data.path",
    "--trainer.max_steps=0": "trainer.max_steps",
    "--trainer.max_steps=many": "trainer.max_steps",
    "--trainer.devices=0": "devices",
    "--trainer.devices=-3": "devices",
    "--trainer.devices=lots": "devices",
    "--trainer.accelerator=gpu": "trainer",
    "--trainer.accelerator=tpu": "trainer",
    "--trainer.precision=8": "precision",
    "--trainer.strategy=shared": "strategy",
    "--trainer.strategy=ddp_spawn": "trainer.strategy…spawn…choose ddp",
    "--trainer.strategy=ddp_notebook": "trainer.strategy…notebook…choose ddp",
    "--trainer.num_nodes=0": "num_nodes",
    "--trainer.accumulate_grad_batches=0": "accumulate_grad_batches",
    "--trainer.gradient_clip_val=-1": "gradient_clip_val",
    "--trainer.gradient_clip_val=nan": "gradient_clip_val",
    "--trainer.val_check_interval=0": "val_check_interval",
    "--trainer.val_check_interval=1.5": "val_check_interval",
    "--trainer.log_every_n_steps=-1": "log_every_n_steps",
    "--trainer.limit_val_batches=-2": "limit_val_batches",
    "--trainer.limit_train_batches=0": "trainer.limit_train_batches is 0…trains nothing",
    "--trainer.limit_train_batches=1": "trainer.limit_train_batches is 1…the same batches…max_steps",
    "--trainer.limit_train_batches=0.5": "trainer.limit_train_batches is 0.5…the same batches…max_steps",
    "--trainer.overfit_batches=2": "trainer.overfit_batches is 2…cannot go on…data.path",
    "--trainer.overfit_batches=0.5": "trainer.overfit_batches is 0.5…cannot go on…data.path",
    "--trainer.max_epochs=0": "trainer.max_epochs is 0…trains nothing",
    "--trainer.fast_dev_run=-1": "fast_dev_run",
    "--trainer.logger=paper": "logger",
    "--trainer.callbacks=Nothing": "callbacks",
    "--trainer.callbacks=[{class_path: Timer, init_args: {duration: 00:00:01:00}}]": "Timer ends…trainer.max_time",
    "--trainer.callbacks=[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}]": (
        "GradientAccumulationScheduler is forgotten…trainer.accumulate_grad_batches"
    ),
    "--trainer.callbacks=[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.1, swa_epoch_start: 1}}]": (
        "StochasticWeightAveraging averages at the end of epochs…leave it out"
    ),
    "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val_los}}]": (
        "EarlyStopping monitors 'val_los', which nothing logs…val_loss"
    ),
    "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val_loss, mode: low}}]": (
        "`mode` can be min, max, got low"
    ),
    "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitr: val_loss}}]": (
        "trainer.callbacks: Problem with given class_path…EarlyStopping': Option 'monitr' is not accepted\n"
    ),
    "--trainer.callbacks=EarlyStopping": "trainer.callbacks: Problem with…arguments are required: monitor\n",
    "--trainer.callbacks=[{class_path: LearningRateMonitor, init_args: {logging_interval: often}}]": (
        "LearningRateMonitor'…logging_interval…['step', 'epoch']"
    ),
    "--trainer.callbacks=[{class_path: OnExceptionCheckpoint, init_args: {dirpath: x}}]": "in the midst of a step",
    "--trainer.callbacks=[{class_path: LearningRateFinder}]": "LearningRateFinder…EXP=lr_sweep",
    "--trainer.callbacks=[{class_path: BatchSizeFinder}]": "BatchSizeFinder…order of the data",
    "--trainer.callbacks=[{class_path: BackboneFinetuning}]": "BackboneFinetuning…leave it out",
    "--trainer.logger=MLFlowLogger": "MLFlowLogger…'mlflow>=1.0.0' not met",
    "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: run.yaml/logs}}": "run.yaml/logs cannot be written",
    "--trainer.profiler=stopwatch": "profiler",
    "--trainer.max_time=later": "later…DD:HH:MM:SS",
    "--trainer.default_root_dir=run.yaml": "run.yaml",
    "--trainer.default_root_dir=/proc/nowhere": "/proc/nowhere",
    f"--trainer.default_root_dir={'x' * 300}": "x cannot be written to…too long…another folder",
    "--trainer.fit=1": "trainer.fit",
    "--checkpoint.every_n_train_steps=-1": "checkpoint…every_n_train_steps",
    "--checkpoint.every_n_train_steps=often": "checkpoint.every_n_train_steps",
    "--checkpoint.save_top_k=-5": "checkpoint…save_top_k",
    "--checkpoint.dirpath=elsewhere": "checkpoint.dirpath is elsewhere…default_root_dir",
    "--checkpoint.save_on_exception=true": "checkpoint.save_on_exception is true…in the midst of a step",
    "--checkpoint.monitor=val_los": "checkpoint.monitor is 'val_los', which nothing logs…val_loss",
    "--checkpoint.filename=a/b": "checkpoint.filename is 'a/b'",
    "--checkpoint.filename={step": "checkpoint.filename is '{step'",
    "--checkpoint.filename=previous": "checkpoint.filename is 'previous'",
    "--checkpoint.nothing=1": "checkpoint.nothing",
    "--ckpt_path=run.yaml": "run.yaml",
    "--ckpt_path=experiments": "no checkpoint in experiments…the directory of a run",
    "--ckpt_path=last": "--ckpt_path last…leave it out",
    f"--ckpt_path={'x' * 300}": "there is no checkpoint xxx",
    "--model.init_from=nowhere": "nowhere",
}


def test_a_validation_of_no_checkpoint(place: Any) -> None:
    place.refuses("validate", *FIT[1:], saying="validate measures a checkpoint…--ckpt_path")


@pytest.mark.parametrize("option", VALUES)
def test_values(place: Any, option: str) -> None:
    place.refuses(*FIT, option, saying=VALUES[option])


def test_going_on_with_a_run_that_never_was(place: Any) -> None:
    options = ("--trainer.default_root_dir=new", "--ckpt_path=last")
    place.refuses(*FIT, *options, saying="--ckpt_path last…new…leave it out")


def test_an_average_of_weights_that_are_sharded(place: Any) -> None:
    options = (
        "--trainer.strategy={class_path: elas_lightning.training.sharding.FullyShardedStrategy}",
        "--trainer.callbacks=EMAWeightAveraging",
    )
    place.refuses(*FIT, *options, saying="EMAWeightAveraging needs whole weights…--trainer.strategy ddp")
