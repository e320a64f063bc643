"""``elas fit --model.init_from``: the weights are there before the first step, and refused where they misfit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import as_trained, random_model

from elas_lightning.configuration import ElasCLI, command_line
from elas_lightning.errors import UserError
from elas_lightning.inference.export import export_model
from elas_lightning.inference.load import TrainedModel, load_model
from elas_lightning.nn.folder import WEIGHTS_NAME, read_weights
from elas_lightning.runner import execute

pytest.importorskip("safetensors", reason="folders are written with safetensors")
from safetensors.torch import save_file


@pytest.fixture
def start(tokenizer_file: Path, tmp_path: Path) -> TrainedModel:
    """A model of the overlay's shape, exported to ``start``."""
    model = random_model(hidden_size=16, intermediate_size=32, num_heads=2, ffn="relu2", attention_rank=4, ffn_rank=4)
    trained = as_trained(model, tokenizer_file)
    export_model(trained, tmp_path / "start", form="factors")
    return trained


@pytest.fixture
def make_run(start: TrainedModel, overlay: Path, tmp_path: Path) -> Callable[..., ElasCLI]:
    """Makes runs of three steps, so short that the weights stay what they were, in one directory."""

    def make(**overrides: Any) -> ElasCLI:
        own = {
            "trainer.default_root_dir": str(tmp_path / "run"),
            "trainer.max_steps": 3,
            "model.init_from": str(tmp_path / "start"),
            "model.optimizer.lr": 1e-12,
            "checkpoint.every_n_train_steps": 2,
        }
        return ElasCLI(command_line([overlay], {**own, **overrides}), run=False)

    return make


def test_the_run_starts_there_and_records_it(
    make_run: Callable[..., ElasCLI], start: TrainedModel, tmp_path: Path
) -> None:
    cli = make_run()
    result = execute(cli)
    for name, weight in start.model.state_dict().items():
        torch.testing.assert_close(cli.model.model.state_dict()[name], weight, rtol=0, atol=1e-8)
    assert result.config["model"]["init_from"] == str(tmp_path / "start")


def test_another_shape_is_refused(make_run: Callable[..., ElasCLI]) -> None:
    with pytest.raises(UserError, match=r"model\.config\.ffn_rank is 8 but .* has 4"):
        execute(make_run(**{"model.config.ffn_rank": 8}))


def test_weights_that_are_not_whole_are_refused(make_run: Callable[..., ElasCLI], tmp_path: Path) -> None:
    weights = read_weights(tmp_path / "start")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "start" / WEIGHTS_NAME)
    with pytest.raises(UserError, match=r"do not fit their configuration: [^~]*Missing key[^~]*norm\.weight"):
        execute(make_run())


@pytest.mark.parametrize("part", [None, "sparsity", "weights"])
def test_a_folder_of_another_version_is_refused(
    part: str | None, make_run: Callable[..., ElasCLI], tmp_path: Path
) -> None:
    path = tmp_path / "start/config.json"
    facts = json.loads(path.read_text())
    (facts["config"][part] if part else facts["config"])["novelty"] = 1
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"not of this version of elas-lightning .*'novelty'"):
        load_model(tmp_path / "start")
    with pytest.raises(UserError, match="not of this version of elas-lightning"):
        execute(make_run())


def test_other_ids_are_refused(make_run: Callable[..., ElasCLI], tmp_path: Path) -> None:
    path = tmp_path / "start/config.json"
    facts = json.loads(path.read_text())
    facts["tokenizer"]["fingerprint"] = "other"
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"another tokenizer .* set data\.tokenizer to .*tokenizer\.json"):
        execute(make_run())


def test_a_checkpoint_is_no_folder(make_run: Callable[..., ElasCLI], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a folder of `elas export --form factors`"):
        execute(make_run(**{"model.init_from": str(tmp_path / "last.ckpt")}))


# the directory of a resumed run is not empty, and is meant not to be
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_has_its_weights_from_the_checkpoint(make_run: Callable[..., ElasCLI], tmp_path: Path) -> None:
    cli = make_run(**{"model.optimizer.lr": 0.01, "checkpoint.every_n_train_steps": 3})
    execute(cli)
    saved = torch.load(cli.checkpoint_path, weights_only=True)["state_dict"]
    resumed = make_run(
        **{"model.optimizer.lr": 0.01, "checkpoint.every_n_train_steps": 3}
    )  # which has nothing left to do
    execute(resumed, ckpt_path=cli.checkpoint_path)
    for name, weight in resumed.model.model.state_dict().items():
        assert torch.equal(weight, saved[f"model.{name}"]), name
    start = load_model(tmp_path / "start").model
    assert not torch.equal(resumed.model.model.lm_head.weight, start.lm_head.weight)
