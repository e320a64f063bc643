"""FSDP2 through Lightning: which parameters travel together, and checkpoints that any number of processes can read.

Each process keeps a slice of every parameter, of its gradient and of its optimizer state. The matrices of a decoder
block are one group, gathered before the block runs and let go after it; embedding, head and all norms are another,
which stays gathered from the beginning of forward to the end of backward.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from elas_lightning.errors import UserError
from elas_lightning.files import TEMPORARY, not_written, sync_folder, write_atomically
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.experts import MixtureOfExperts
from elas_lightning.nn.llama import Llama
from elas_lightning.training.checkpoints import read, remove, retire, verify, write_archive
from elas_lightning.training.folder_checkpoints import WHOLE_NAME, each_tensor, rows_of, shard_name, take_apart
from elas_lightning.training.optimizers.whole import shard_like, whole


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, on one mesh of all processes, on GPUs or CPUs.

    Of Lightning's own version this changes three things. All processes share one mesh, whatever their number of
    nodes. A checkpoint holds what a single process would write, in one file or shared out over the files of a folder,
    by the project's own means; any strategy on any number of processes can go on from it. Optimizer states are taken as
    they are: torch's ``get_optimizer_state_dict`` first takes a step with zero gradients, which LORO would count.

    Args:
        sharded_checkpoints: Every process writes what it holds into a folder, which all must see, instead of the first
            process gathering all of it in its memory.
        process_group_backend: ``nccl`` or ``gloo``; None: what suits the device.
        timeout: How long one process waits for the others.
    """

    def __init__(
        self,
        sharded_checkpoints: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The model's weights; unless checkpoints are sharded, whole ones, which the first process alone keeps."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, as :meth:`lightning_module_state_dict`."""
        return self._to_save(ParallelStrategy.optimizer_state(self, optimizer))

    def _to_save(self, state: Mapping[str, Any]) -> dict[str, Any]:
        def gather(path: str, tensor: Tensor) -> Tensor:
            gathered = whole(tensor.detach())
            return gathered.cpu() if self.is_global_zero else gathered.new_empty(0, device="cpu")

        return dict(state) if self._sharded_checkpoints else each_tensor(state, gather)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write one file, or every process its own.

        Raises:
            UserError: It cannot be written; what was there is untouched.
        """
        if self._sharded_checkpoints:
            self._save_folder(checkpoint, Path(self.broadcast(filepath)))
        else:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def _save_folder(self, checkpoint: dict[str, Any], path: Path) -> None:
        common, rows = take_apart(checkpoint)
        staged, first = path.with_name(path.name + TEMPORARY), self.is_global_zero

        def begin() -> None:
            remove(staged)
            staged.mkdir(parents=True)

        def write() -> None:
            own = {shard_name(self.global_rank, self.world_size): rows}
            for name, content in (own | {WHOLE_NAME: common} if first else own).items():
                write_atomically(staged / name, partial(write_archive, content), verify)

        def put_in_place() -> None:
            retire(path)
            os.replace(staged, path)
            sync_folder(path.parent)

        for part, by_all in ((begin, False), (write, True), (put_in_place, False)):
            error: UserError | None = None
            try:
                if first or by_all:
                    part()
            except UserError as failure:
                error = failure
            except OSError as failure:
                error = not_written(path, failure)
            if self.reduce_boolean_decision(error is not None, all=False):
                if first:
                    with suppress(OSError):
                        remove(staged)
                raise error or UserError(f"another process could not write its part of {path}")

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what any number of processes have written.

        Raises:
            UserError: It is torn, or holds more than tensors and plain types.
        """
        path = Path(checkpoint_path)
        if self.is_global_zero:
            verify(path)
        self.barrier()
        # the processes of a machine read the same pages, and of a folder only their own rows
        return read(path, mmap=True, combine=self._my_rows)

    def _my_rows(self, pieces: Sequence[Tensor]) -> Tensor:
        rows, shape = rows_of(pieces, self.global_rank, self.world_size)
        return DTensor.from_local(
            rows.to(self.root_device),
            self.device_mesh["data_parallel"],
            (Shard(0),),
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's shards."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shards = {
            name: shard_like(value, own[name], source=None) if name in own else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's shards of optimizer states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: _like_parameter(value, parameters[number]) for key, value in entries.items()}
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return shard_like(value, parameter, source=None)
    return value


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse processes that are copies of this one, before any is started, and averages of weights that are sharded.

    What callbacks have measured stays in copies, and Lightning hands the weights back by a file of its own.

    Raises:
        UserError: The strategy makes such, or a callback.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "trainer.strategy starts copies of this process (spawn, fork, notebook), which would take a run's records "
            "with them: choose ddp, which starts the command anew"
        )
    averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    if averaging and isinstance(trainer.strategy, FullyShardedStrategy):
        raise UserError(
            f"trainer.callbacks: {type(averaging[0]).__name__} needs whole weights, but trainer.strategy is "
            "FullyShardedStrategy: train with --trainer.strategy ddp"
        )


def check_strategy(strategy: Strategy, config: ModelConfig) -> None:
    """Refuse what would train something else than asked for.

    Raises:
        UserError: The model and its optimizers are not made for the strategy, or its weights cannot be sharded.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FullyShardedStrategy):
        raise UserError(
            f"trainer.strategy {type(strategy).__name__} is not supported: choose ddp, or FullyShardedStrategy "
            "(--config experiments/scale/fsdp_node.yaml)"
        )
    if isinstance(strategy, FullyShardedStrategy) and config.weights.method != "plain":
        raise UserError(
            f"model.config.weights.method is {config.weights.method}, whose rules need whole weights, but "
            "trainer.strategy is FullyShardedStrategy: train it with --trainer.strategy ddp"
        )


def shard_model(model: Llama, mesh: DeviceMesh, precision: str, *, compile: bool) -> None:
    """Shard a model in place over a mesh of one dimension; nothing where that has been done.

    Under ``bf16-mixed`` the matrices of blocks are gathered in bfloat16, which is what autocast would make of them, and
    gradients are summed over processes in float32: the arithmetic is that of one process. Norms, routers, embedding and
    head stay in float32, as autocast leaves them.

    Args:
        model: Its weights, the same on every process.
        mesh: The processes that share it.
        precision: Lightning's name of the trainer's precision.
        compile: Run attention and feed-forward network of each block through ``torch.compile``. What lies around them
            gathers and lets go, which a graph of the whole model cannot hold.
    """
    if isinstance(model, FSDPModule):
        return
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = mixed if precision == "bf16-mixed" else MixedPrecisionPolicy()
    for block in model.layers:
        parts = [block.get_submodule("self_attn"), block.get_submodule("mlp")]
        if isinstance(parts[1], MixtureOfExperts):
            fully_shard(parts[1].router, mesh=mesh)
        if compile:
            for part in parts:
                # not the module, whose hooks are FSDP's and have no place in a graph
                part.forward = torch.compile(part.forward)
        fully_shard(parts, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    # the head's weight is read where the loss is made: both lie between the gathering and the letting go
    register_fsdp_forward_method(model, "loss")


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are slices."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_model(model: Llama, here: bool) -> Llama | None:
    """A model to look into: itself, or where it is sharded a whole copy with the sites as they are.

    Args:
        model: Sharded or not; where it is, all processes must call.
        here: Whether this process wants it.
    """
    if not is_sharded(model):
        return model if here else None
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    if not here:
        return None
    with torch.device("meta"):
        copy = Llama(model.config)
    copy.load_state_dict(weights, assign=True)
    copy.set_sparsity(model.sparsity_active)
    return copy.to(next(iter(weights.values())).device).train(model.training)
