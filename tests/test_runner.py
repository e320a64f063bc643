"""One run, from overlays to a result file."""

import subprocess
from pathlib import Path

import pytest
import torch

from elas_lightning import runner
from elas_lightning.errors import UserError
from elas_lightning.nn.account import TrainingStep, count_parameters, flops_per_token, memory_account
from elas_lightning.nn.config import ModelConfig
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest, run
from elas_lightning.training.hardware import describe_environment
from elas_lightning.training.module import ElasModule


def test_the_result_file_says_everything(overlay: Path, tmp_path: Path) -> None:
    request = RunRequest(tmp_path / "mine", [overlay], {"model.config.ffn_rank": 8, "seed_everything": 3})
    result = run(request)
    assert RunResult.read(tmp_path / "mine") == result
    assert (result.run, result.state, result.reason, result.seed) == ("mine", "complete", None, 3)
    config = ModelConfig.from_mapping(result.config["model"]["config"])
    assert config.ffn_rank == 8
    assert result.metrics["parameters"] == count_parameters(config)["total"]
    assert result.metrics["flops_per_token"] == flops_per_token(config, 16)["total"]
    assert result.metrics["flops_per_token_24"] == flops_per_token(config, 16)["flops_with_24"]
    step = TrainingStep(3, 16, "32-true", "cpu")
    expected = memory_account(config, step)
    assert result.metrics["account"] == {k: v for k, v in expected.items() if k != "activations_by_kind"}
    assert result.metrics["loss_spikes"] == 0
    assert result.metrics["energy_joules"] is None
    assert result.metrics["tokens_per_joule"] is None
    assert result.metrics["telemetry_seconds"] > 0
    assert result.backend["requested"] == "auto"
    assert result.backend["chosen"]
    assert result.environment["hardware"]
    assert result.environment["versions"]["torch"]
    assert result.environment["command"].startswith("elas fit --config")
    assert result.data["source"] == "local"
    assert 1 < result.data["unigram_perplexity"] < 300


def test_the_result_is_of_the_device_that_trained(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves the model to the CPU before the result is written; here to `meta`."""
    monkeypatch.setattr(ElasModule, "cpu", lambda module: module.to("meta"))
    asked: list[torch.device] = []

    def describe(device: torch.device, command: str) -> dict[str, object]:
        asked.append(device)
        return describe_environment(device, command)

    monkeypatch.setattr(runner, "describe_environment", describe)
    result = run(RunRequest(tmp_path / "run", [overlay], {"trainer.max_steps": 10}))
    assert asked == [torch.device("cpu")]
    assert result.metrics["account"] is not None


def test_a_finished_run_is_not_run_again(overlay: Path, tmp_path: Path) -> None:
    request = RunRequest(tmp_path / "run", [overlay])
    first = run(request)
    written = (tmp_path / "run/result.json").stat().st_mtime_ns
    assert run(request) == first
    assert (tmp_path / "run/result.json").stat().st_mtime_ns == written


def test_a_complete_run_leaves_figures_and_no_weights(overlay: Path, tmp_path: Path) -> None:
    run(RunRequest(tmp_path / "run", [overlay], {"checkpoint.every_n_train_steps": 5}))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
        "curve.csv",
        "progress.json",
        "result.json",
        "telemetry.csv",
    ]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(overlay: Path, tmp_path: Path) -> None:
    losses = [
        run(RunRequest(tmp_path / str(i), [overlay], {"seed_everything": seed})).metrics["val_loss"]
        for i, seed in enumerate([1, 1, 2])
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_torn_checkpoint_is_refused_and_left_alone(overlay: Path, tmp_path: Path, kept: int) -> None:
    whole, torn = tmp_path / "whole.ckpt", tmp_path / "run/checkpoints/last.ckpt"
    torch.save({"weights": torch.zeros(1000)}, whole)
    torn.parent.mkdir(parents=True)
    torn.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"the checkpoint .*last\.ckpt cannot be read .*delete it"):
        run(RunRequest(tmp_path / "run", [overlay]))
    assert torn.stat().st_size == kept
    assert not (tmp_path / "run/result.json").exists()


def test_utilisation_is_the_models_flops_of_real_tokens_over_the_peak(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "peak_flops", lambda device, precision: 2e12)
    result = run(RunRequest(tmp_path / "run", [overlay], {"trainer.max_steps": 3}))
    config = ModelConfig.from_mapping(result.config["model"]["config"])
    flops = flops_per_token(config, result.config["data"]["sequence_length"])["total"] * result.metrics["tokens"]
    expected = flops / result.metrics["seconds"] / 2e12
    assert result.metrics["model_flops_utilisation"] == pytest.approx(expected, rel=1e-9)


def test_golden_loss(overlay: Path, tmp_path: Path) -> None:
    """Twelve steps of ELAS on the small corpus end where they ended when this was written (torch 2.13, x86-64).

    Another value means other mathematics somewhere, to be explained before it is recorded here.
    """
    result = run(RunRequest(tmp_path / "run", [overlay]))
    assert result.metrics["val_loss"] == pytest.approx(4.705153, rel=2e-4)


@pytest.mark.parametrize(("codes", "refused"), [((0, 2), True), ((1,), False), ((-9, 0), False), ((), False)])
def test_a_rank_that_was_refused_is_told_from_one_that_died(codes: tuple[int, ...], refused: bool) -> None:
    how = [f"kill -9 $$; exit {code}" if code < 0 else f"sleep 0.05; exit {code}" for code in codes]
    ranks = [subprocess.Popen(["sh", "-c", command]) for command in how]
    assert runner._has_refused(ranks) == refused
    for rank in ranks:
        rank.wait()


def test_ranks_that_are_alive_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LAST_WORDS_SECONDS", 0.1)
    with subprocess.Popen(["sleep", "60"]) as rank:
        assert not runner._has_refused([rank])
        rank.kill()
