"""ELAS with PyTorch Lightning: low-rank language models with 2:4 sparse activations.

The names below load on first use, so that ``import elas_lightning`` (and ``elas --help``) does not wait for
torch, and so that ``elas_lightning.ops`` and ``elas_lightning.nn`` work where Lightning or datasets are absent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ElasModule": "elas_lightning.training.module",
    "C4DataModule": "elas_lightning.data.module",
    "ModelConfig": "elas_lightning.nn.config",
    "SparsityConfig": "elas_lightning.nn.config",
    "Llama": "elas_lightning.nn.llama",
    "load_run": "elas_lightning.analysis.run",
    "load_sweep": "elas_lightning.analysis.load",
    "plots": "elas_lightning.plots",
}
__all__ = [
    "C4DataModule",
    "ElasModule",
    "Llama",
    "ModelConfig",
    "SparsityConfig",
    "__version__",
    "load_run",
    "load_sweep",
    "plots",
]

if TYPE_CHECKING:
    from elas_lightning import plots
    from elas_lightning.analysis.load import load_sweep
    from elas_lightning.analysis.run import load_run
    from elas_lightning.data.module import C4DataModule
    from elas_lightning.nn.config import ModelConfig, SparsityConfig
    from elas_lightning.nn.llama import Llama
    from elas_lightning.training.module import ElasModule


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = import_module(_HOMES[name])
        return home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    raise AttributeError(f"module 'elas_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
