"""What PyTorch keeps, allocates and multiplies, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.account import flops_by_part


def storage_bytes(tensors: list[Tensor]) -> dict[int, int]:
    """Size of each storage, a storage that several tensors share once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # held, so that its address is nobody else's
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


class Live(TorchDispatchMode):
    """Bytes of every storage that an operator has made and nobody has freed."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.given = set(storage_bytes(given))
        self.made: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def now(self) -> int:
        self.made = {at: (ref, size) for at, (ref, size) in self.made.items() if not ref.expired()}
        return sum(size for _, size in self.made.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.made.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.peak = max(self.peak, self.now())
        return out


def step_flops(model: Llama, input_ids: Tensor) -> int:
    """What torch counts of a forward and a backward pass; fused attention would count a product of its own."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids).sum().backward()
    return counter.get_total_flops()


def accounted_flops(config: ModelConfig, sequence_length: int) -> int:
    """The same by the account, of one token."""
    account = flops_by_part(config, sequence_length)
    return sum(account[part]["total"] for part in ("forward", "backward", "recomputed"))
