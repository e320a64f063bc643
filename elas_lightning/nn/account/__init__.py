"""What a model costs, from its configuration alone: parameters, FLOPs and bytes; nothing is allocated."""

from elas_lightning.nn.account.activations import Kept, activations
from elas_lightning.nn.account.flops import flops_by_part, flops_per_token
from elas_lightning.nn.account.memory import kv_cache_bytes, memory_account
from elas_lightning.nn.account.parameters import count_parameters, parameter_account
from elas_lightning.nn.account.step import Device, Precision, TrainingStep

__all__ = [
    "Device",
    "Kept",
    "Precision",
    "TrainingStep",
    "activations",
    "count_parameters",
    "flops_by_part",
    "flops_per_token",
    "kv_cache_bytes",
    "memory_account",
    "parameter_account",
]
