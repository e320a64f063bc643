"""A folder of factors: whole or not there, and refused where it is another model's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.nn import ExpertsConfig, Llama, SparsityConfig
from elas_lightning.nn.folder import new_folder, read_facts, read_weights, starting_weights, write_model

pytest.importorskip("safetensors", reason="folders are read and written with safetensors")


@pytest.fixture
def folder(elas, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    with new_folder(path) as staged:
        write_model(staged, elas(), Llama(elas()).state_dict(), step=3, tokenizer={"fingerprint": "f"})
    return path


def test_weights_and_facts_come_back(folder: Path, elas) -> None:
    torch.manual_seed(0)
    for name, weight in Llama(elas()).state_dict().items():
        assert torch.equal(read_weights(folder)[name], weight), name
    assert read_facts(folder)["step"] == 3
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def stop(staged: Path) -> None:
        (staged / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError), new_folder(tmp_path / "model") as staged:
        stop(staged)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="exists and is not empty"), new_folder(folder):
        pytest.fail("nothing may be written")
    assert sorted(folder.iterdir()) == before


def test_starting_weights_may_differ_in_sparsity_and_balance_alone(folder: Path, elas) -> None:
    changed = elas(sparsity=SparsityConfig(("ffn_hidden",)), experts=ExpertsConfig(balance=0.5))
    weights, fingerprint = starting_weights(folder, changed)
    assert fingerprint == "f"
    assert "layers.1.mlp.up_proj.A" in weights
    for changes in ({"ffn_rank": 8}, {"num_heads": 2}, {"rope_theta": 500.0}):
        (key,) = changes
        with pytest.raises(UserError, match=rf"model\.config\.{key} is {changes[key]} but .* has"):
            starting_weights(folder, elas(**changes))


@pytest.mark.parametrize(
    "changes", [{"checkpointing": "bottleneck"}, {"ffn_storage": "recompute"}, {"backend": "reference"}]
)
def test_what_costs_time_or_memory_alone_may_differ(folder: Path, elas, changes: dict[str, Any]) -> None:
    weights, _ = starting_weights(folder, elas(**changes))
    Llama(elas(**changes)).load_state_dict(weights)


def test_sizes_that_round_to_one_width_are_one(folder: Path, elas) -> None:
    assert elas(intermediate_size=45).ffn_width == elas().ffn_width
    starting_weights(folder, elas(intermediate_size=45))
    with pytest.raises(UserError, match=r"model\.config\.intermediate_size is 64 but"):
        starting_weights(folder, elas(intermediate_size=64))


def test_torn_and_foreign_folders_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="missing or torn"):
        read_weights(folder)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(UserError, match="is of version 99"):
        read_facts(folder)
    config.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="holds a model of type 'gpt2'"):
        read_facts(folder)
    config.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_facts(folder)


def test_says_which_package_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"^safetensors is not installed: pip install 'elas-lightning\[export\]'$"):
        read_weights(folder)
