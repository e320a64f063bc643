"""A trained run and a model with weights large enough to tell tokens apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.runner import execute


@pytest.fixture(scope="session")
def run(write_overlay: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> ElasCLI:
    """A run of 12 steps that has kept its checkpoint; the 2:4 step is on from step 4. To be read only."""
    folder = tmp_path_factory.mktemp("run")
    own = {"trainer.default_root_dir": str(folder / "mine"), "checkpoint.every_n_train_steps": 12}
    cli = ElasCLI(command_line([write_overlay(folder)], own), run=False)
    execute(cli)
    return cli


@pytest.fixture
def text_tokenizer(tokenizer_file: Path) -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_file(str(tokenizer_file)), "small")


@pytest.fixture
def opinionated() -> Llama:
    """Full-rank SwiGLU on 300 tokens, untrained, its predictions far from uniform."""
    torch.manual_seed(0)
    model = Llama(ModelConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(6.0)
    return model.eval()
