"""A checkpoint becomes a model again, with its tokenizer and its run."""

from pathlib import Path

import pytest
import torch

from elas_lightning.configuration import ElasCLI
from elas_lightning.errors import UserError
from elas_lightning.inference.load import load_model


@pytest.mark.parametrize("given", ["the directory", "the file"])
def test_weights_phase_tokenizer_and_result_come_back(trained: ElasCLI, given: str) -> None:
    loaded = load_model(trained.directory if given == "the directory" else trained.checkpoint_path)
    expected = trained.model.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.step == 12
    assert loaded.model.sparsity_active
    assert not loaded.model.training
    assert loaded.tokenizer.fingerprint == trained.datamodule.text_tokenizer.fingerprint
    assert loaded.result is not None
    assert loaded.result.state == "complete"


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in"):
        load_model(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    other = {"hyper_parameters": {}, "state_dict": {}, "global_step": 0, "pytorch-lightning_version": "2"}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="has no 'config'"):
        load_model(tmp_path / "other.ckpt")
