"""A checkpoint becomes a model again, with its tokenizer and its run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from small_models import LOW_RANK, as_trained, random_model

from elas_lightning.configuration import ElasCLI
from elas_lightning.errors import UserError
from elas_lightning.inference.export import export_model
from elas_lightning.inference.load import load_model
from elas_lightning.nn import SparsityConfig


@pytest.mark.parametrize("given", ["the directory", "the file"])
def test_weights_phase_tokenizer_and_result_come_back(run: ElasCLI, given: str) -> None:
    loaded = load_model(run.directory if given == "the directory" else run.checkpoint_path)
    expected = run.model.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.step == 12
    assert loaded.model.sparsity_active
    assert not loaded.model.training
    assert loaded.tokenizer.fingerprint == run.datamodule.text_tokenizer.fingerprint
    assert loaded.result is not None
    assert loaded.result.state == "complete"


def test_a_sharded_checkpoint_knows_the_directory_of_its_run(run: ElasCLI, tmp_path: Path) -> None:
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.mkdir(parents=True)
    shutil.copy(run.checkpoint_path, last / "whole.pt")  # nothing of it is sharded
    torch.save({}, last / "shard-00000-of-00001.pt")
    assert load_model(last).directory == load_model(tmp_path / "run").directory == tmp_path / "run"
    with pytest.raises(UserError, match=r"whole\.pt is one file of the checkpoint .*last\.ckpt: give that folder"):
        load_model(last / "whole.pt")


def test_the_newest_checkpoint_of_a_directory_is_taken_whatever_its_name(run: ElasCLI, tmp_path: Path) -> None:
    """A run of another checkpoint.filename was stopped, which wrote last.ckpt, and went on."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, age in (("previous.ckpt", 0), ("step=12.ckpt", 1), ("last.ckpt", 9)):
        shutil.copy(run.checkpoint_path, folder / name)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    assert load_model(tmp_path).path == folder / "step=12.ckpt"


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in"):
        load_model(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    other = {"hyper_parameters": {}, "state_dict": {}, "global_step": 0, "pytorch-lightning_version": "2"}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="has no 'config'"):
        load_model(tmp_path / "other.ckpt")


@pytest.mark.parametrize("backend", ["hopper", "cusparselt"])
@torch.no_grad()
def test_a_model_of_another_machines_backend_can_be_used(backend: str, tokenizer_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="folders are written with safetensors")
    model = random_model(ffn="relu2", **LOW_RANK, sparsity=SparsityConfig(("ffn_hidden",)))
    export_model(as_trained(model, tokenizer_file), tmp_path / "out", form="factors")
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    facts["config"]["backend"] = backend
    (tmp_path / "out" / "config.json").write_text(json.dumps(facts))
    loaded = load_model(tmp_path / "out")
    ids_BT = torch.randint(model.config.vocab_size, (2, 40))
    assert torch.equal(loaded.model(ids_BT), model(ids_BT))
