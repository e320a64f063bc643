"""The stack of overlays that makes a run, and what this project ships of them."""

from pathlib import Path
from typing import Any, Union, get_args

import lightning as L
import pytest
import yaml
from fitting import Forked

from elas_lightning.configuration import ElasCLI, check, command_line, resolve
from elas_lightning.errors import UserError
from elas_lightning.layout import shipped_folder
from elas_lightning.nn.account import count_parameters
from elas_lightning.nn.config import ModelConfig
from elas_lightning.runner import RunRequest, run
from elas_lightning.sweep.composite import is_composite
from elas_lightning.sweep.run import Request
from elas_lightning.training.optimizers import OptimizerConfig

EXPERIMENTS = shipped_folder("experiments")
SIZES = sorted(p.stem for p in (EXPERIMENTS / "sizes").glob("*.yaml"))
METHODS = sorted(p.stem for p in (EXPERIMENTS / "methods").glob("*.yaml"))
DATA = sorted(p.stem for p in (EXPERIMENTS / "data").glob("*.yaml"))
SCALES = sorted(p.stem for p in (EXPERIMENTS / "scale").glob("*.yaml"))
SWEEPS = sorted(p.stem for p in shipped_folder("sweeps").glob("*.yaml") if not is_composite(str(p)))


def _stack(size: str, method: str, data: str = "pydocs") -> list[Path]:
    return [
        EXPERIMENTS / f"sizes/{size}.yaml",
        EXPERIMENTS / f"methods/{method}.yaml",
        EXPERIMENTS / f"data/{data}.yaml",
    ]


def test_later_overlays_win_and_overrides_win_over_all(tmp_path: Path) -> None:
    for name, rank in (("a", 4), ("b", 8)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"config": {"ffn_rank": rank}}}))
    stack = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    assert resolve(stack, {})["model"]["config"]["ffn_rank"] == 8
    assert resolve(stack, {"model.config.ffn_rank": 16})["model"]["config"]["ffn_rank"] == 16


@pytest.mark.parametrize("value", [None, True, 3, 1e-30, "a b", [], ["ffn_hidden", "attention_input"], [0, 2]])
def test_values_survive_the_command_line(value: Any) -> None:
    (argument,) = command_line([], {"key": value})
    assert yaml.safe_load(argument.removeprefix("--key=")) == value


@pytest.mark.parametrize("text", ["2024", "yes", "it's", "a: b #1", "{step}", "[x]", ""])
@pytest.mark.parametrize("key", ["data.path", "data.tokenizer"])  # which may be text or nothing, and is always text
def test_text_survives_the_command_line(key: str, text: str) -> None:
    section, name = key.split(".")
    assert resolve(_stack("tiny", "elas"), {key: text})[section][name] == text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.config.rnak": 4}, "model.config.rnak"),
        ({"model.config.num_layers": "many"}, "num_layers"),
        ({"model.config.ffn_rank": 65}, "ffn_rank = 65 .*1 to 64"),
        ({"model.config.intermediate_size": 174, "model.config.ffn": "swiglu"}, "divisible by 4, not 174"),
        ({"model.config.ffn": "relu3"}, "relu3"),
        ({"data.batching": "heap"}, "data.batching|data"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        check(_stack("tiny", "elas"), overrides)
    assert "\n" not in str(refusal.value)


def _parse_with_fractions_first(written: Path) -> None:
    hints = L.Trainer.__init__.__annotations__
    for name, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[name] = Union[float, int, None]  # noqa: UP007  # as typing hands it to Lightning if made before
    read = [ElasCLI([f"--trainer.limit_val_batches={text}"], run=False).config["trainer"] for text in ("1", "1.0")]
    written.write_text(str([trainer["limit_val_batches"] for trainer in read]))


def test_a_whole_number_of_batches_is_one_whatever_was_imported_first(tmp_path: Path) -> None:
    # in a process of its own: jsonargparse remembers the types it has seen
    assert Forked(_parse_with_fractions_first, tmp_path / "read").end() == 0
    assert (tmp_path / "read").read_text() == "[1, 1.0]"


def test_a_missing_overlay_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        resolve([tmp_path / "nowhere.yaml"], {})


def _over(base: Any, overlay: Any) -> Any:
    """What the parser makes of an overlay over a resolved configuration, without its tenth of a second."""
    if not isinstance(base, dict) or not isinstance(overlay, dict):
        return overlay
    return base | {key: _over(base.get(key), value) for key, value in overlay.items()}


@pytest.fixture(scope="module")
def overlays() -> dict[str, Any]:
    return {method: yaml.safe_load((EXPERIMENTS / f"methods/{method}.yaml").read_text()) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_possible(method: str, overlays: dict[str, Any]) -> None:
    check(_stack("tiny", method), {})
    size, _, data = _stack("tiny", method)
    assert _over(resolve([size, data], {}), overlays[method]) == resolve(_stack("tiny", method), {})


@pytest.mark.parametrize("size", SIZES)
def test_every_method_is_possible_at_every_size(size: str, overlays: dict[str, Any]) -> None:
    base = resolve([EXPERIMENTS / f"sizes/{size}.yaml", EXPERIMENTS / "data/pydocs.yaml"], {})
    for method, overlay in overlays.items():
        config = _over(base, overlay)
        try:
            ModelConfig.from_mapping(config["model"]["config"])
            OptimizerConfig(**config["model"]["optimizer"]).check_length(config["trainer"]["max_steps"])
        except UserError as error:
            pytest.fail(f"{method}: {error}")


@pytest.mark.parametrize("data", DATA)
def test_every_data_overlay_resolves(data: str) -> None:
    config = resolve(_stack("60m", "elas", data), {})
    assert config["data"]["sequence_length"] == 256
    assert config["data"]["batching"] == "truncate"


@pytest.mark.parametrize("scale", SCALES)
def test_every_way_to_more_machines_resolves(scale: str) -> None:
    trainer = resolve([*_stack("7b", "elas", "c4"), EXPERIMENTS / f"scale/{scale}.yaml"], {})["trainer"]
    kind, _, place = scale.partition("_")
    assert trainer["num_nodes"] == {"node": 1, "nodes": 2}[place]
    if kind == "ddp":
        assert trainer["strategy"] == "ddp"
    else:
        assert trainer["strategy"]["class_path"] == "elas_lightning.training.sharding.FullyShardedStrategy"
        assert trainer["strategy"]["init_args"]["sharded_checkpoints"] is (place == "nodes")
    assert trainer["precision"] == "bf16-mixed"


# experiments/sizes with 32,000 tokens, against the figures of the paper (arXiv 2605.03667, tables of results)
@pytest.mark.parametrize(
    ("size", "full", "low_rank", "elas"),
    [
        ("60m", 58, 43, 42_246_656),
        ("130m", 134, 94, 91_638_528),
        ("350m", 368, 185, 179_028_992),
        ("1b", 1339, 609, 584_157_184),
    ],
)
def test_parameter_counts_are_the_published_ones(size: str, full: int, low_rank: int, elas: int) -> None:
    def count(method: str) -> int:
        config = resolve(_stack(size, method, "c4"), {})["model"]["config"]
        return count_parameters(ModelConfig.from_mapping(config))["total"]

    assert count("full_rank_swiglu") / 1e6 == pytest.approx(full, rel=0.01)
    assert count("lowrank_swiglu") / 1e6 == pytest.approx(low_rank, rel=0.01)
    assert count("elas") == elas


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step_and_is_validated(method: str, overlay: Path, tmp_path: Path) -> None:
    overrides = {
        "trainer.max_steps": 2,
        "model.optimizer.warmup_steps": 1,
        "model.config.sparsity.dense_warmup_steps": 1,
    }
    result = run(RunRequest(tmp_path / "run", [overlay, EXPERIMENTS / f"methods/{method}.yaml"], overrides))
    assert result.state == "complete"
    assert result.metrics["val_loss"] > 0


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("size", ["tiny", "60m"])
def test_every_sweep_is_possible(sweep: str, size: str) -> None:
    plan = Request(sweep, size, "pydocs").plan()
    plan.check()
    assert plan.planned_runs >= 12
    assert len(plan.spec.seeds) >= 3
    assert plan.spec.plots


def test_a_run_logs_for_csv_and_tensorboard_beside_its_result(overlay: Path, tmp_path: Path) -> None:
    own = {"trainer.logger": None, "trainer.default_root_dir": str(tmp_path / "run")}
    cli = ElasCLI(command_line([overlay], own), run=False)
    assert {type(logger).__name__ for logger in cli.trainer.loggers} == {"CSVLogger", "TensorBoardLogger"}
    assert {str(Path(logger.log_dir or "")) for logger in cli.trainer.loggers} == {str(tmp_path / "run/logs/version_0")}
