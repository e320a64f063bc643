"""The model and its accounting; torch is all they need."""

from elas_lightning.nn.config import ModelConfig, SparsityConfig
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.weights_config import WeightsConfig

__all__ = ["ExpertsConfig", "Llama", "ModelConfig", "SparsityConfig", "WeightsConfig"]
