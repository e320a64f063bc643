"""FSDP2 through Lightning: which parameters travel together, and checkpoints that any number of processes can read.

Each process keeps a slice of every parameter, of its gradient and of its optimizer state. The matrices of a decoder block
are one group, gathered before the block runs and let go after it; embedding, head and all norms are another, which stays
gathered from the beginning of forward to the end of backward.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from elas_lightning.nn.llama import Llama
from elas_lightning.training.optimizers.whole import shard_like, whole


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, on one mesh of all processes, on GPUs or CPUs.

    Of Lightning's own version this changes three things. All processes share one mesh, whatever their number of
    nodes. A checkpoint is one file in the form that a single process writes: it goes through the project's
    checkpoint IO, and any strategy on any number of processes can go on from it. Optimizer states are gathered as
    they are: torch's ``get_optimizer_state_dict`` first takes a step with zero gradients, which LORO would count.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; None: what suits the device.
        timeout: How long one process waits for the others.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole state dict, on the CPU of the first process; empty tensors' places elsewhere."""
        assert self.lightning_module is not None
        return self._gather(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state, on the CPU of the first process."""
        return self._gather(ParallelStrategy.optimizer_state(self, optimizer))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's shards out of a whole state dict."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's shards out of whole optimizer states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: _like_parameter(value, parameters[number]) for key, value in entries.items()}
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _gather(self, value: Any) -> Any:
        """Nested containers with whole tensors on the CPU; other processes than the first keep none of them."""
        if isinstance(value, Mapping):
            return {key: self._gather(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._gather(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        gathered = whole(value.detach())
        return gathered.cpu() if self.is_global_zero else gathered.new_empty(0, device="cpu")


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return shard_like(value, parameter, source=None)
    return value


def load_whole(module: nn.Module, weights: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """``module.load_state_dict`` for whole weights, whether or not the module is sharded.

    Args:
        module: What to fill.
        weights: The same on every process.
        strict: As of ``load_state_dict``.
    """
    own = module.state_dict()
    module.load_state_dict(
        {
            name: shard_like(value, own[name], source=None) if name in own else value
            for name, value in weights.items()
        },
        strict=strict,
    )


def shard_model(model: Llama, mesh: DeviceMesh, precision: str) -> None:
    """Shard a model in place over a mesh of one dimension; nothing where that has been done.

    Under ``bf16-mixed`` the matrices of blocks are gathered in bfloat16, which is what autocast would make of them, and
    gradients are summed over processes in float32: the arithmetic is that of one process. Norms, embedding and head stay
    in float32, as autocast leaves them.

    Args:
        model: Its weights, the same on every process.
        mesh: The processes that share it.
        precision: Lightning's name of the trainer's precision.
    """
    if isinstance(model, FSDPModule):
        return
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = mixed if precision == "bf16-mixed" else MixedPrecisionPolicy()
    for block in model.layers:
        fully_shard([block.get_submodule("self_attn"), block.get_submodule("mlp")], mesh=mesh, mp_policy=policy)
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
    copy.train(model.training)
    copy.set_sparsity(model.sparsity_active)
    return copy
