"""2:4 activation sparsity as tensor functions; torch is all they need."""

from elas_lightning.ops.backend import BackendChoice, resolve_backend
from elas_lightning.ops.decode import lowrank_ffn_decode
from elas_lightning.ops.ffn import activate, lowrank_ffn
from elas_lightning.ops.packing import pack_24, unpack_24
from elas_lightning.ops.patterns import sparsify
from elas_lightning.ops.sparsify import relu2_sparsify_24, sparsify_24

__all__ = [
    "BackendChoice",
    "activate",
    "lowrank_ffn",
    "lowrank_ffn_decode",
    "pack_24",
    "relu2_sparsify_24",
    "resolve_backend",
    "sparsify",
    "sparsify_24",
    "unpack_24",
]
