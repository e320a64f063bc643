"""``elas account`` as a person types it: what it prints, what it writes, what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from elas_lightning.cli import main
from elas_lightning.commands import account
from elas_lightning.nn.account import TrainingStep, flops_by_part, memory_account, parameter_account
from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.rule import Place

ROOT = Path(__file__).resolve().parents[2]
STACK = [f"--config={ROOT}/experiments/{name}.yaml" for name in ("sizes/60m", "methods/elas")]


def _account(tmp_path: Path, *arguments: str) -> Any:
    path = tmp_path / "account.json"
    assert main(["account", *arguments, f"--json={path}"]) == 0
    return json.loads(path.read_text())


def test_a_stack_is_counted_as_it_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _account(tmp_path, *STACK)
    config = ModelConfig.from_mapping(found["model"])
    step = TrainingStep(128, 256, "bf16-mixed", "cuda")
    assert (config.hidden_size, config.ffn, config.ffn_rank) == (512, "relu2", 128)
    assert TrainingStep(**found["step"]) == step
    assert found["parameters"] == parameter_account(config)
    assert found["flops_per_token"] == flops_by_part(config, 256)
    assert found["memory"] == memory_account(config, step)
    assert sum(tensor["bytes"] for tensor in found["kept"]) == found["memory"]["activations"]
    printed = capsys.readouterr().out
    for figure in ("42,246,656", f"{found['memory']['total']:,}", "2:4 products at"):
        assert figure in printed


def test_the_step_can_be_changed(tmp_path: Path) -> None:
    found = _account(
        tmp_path,
        *STACK,
        "--batch=2",
        "--sequence=1024",
        "--dtype=32-true",
        "--device=cpu",
        "--checkpointing=block",
        "--set",
        "model.config.ffn_rank=64",
    )
    assert found["model"]["ffn_rank"] == 64
    assert TrainingStep(**found["step"]) == TrainingStep(2, 1024, "32-true", "cpu", "block")
    assert found["memory"]["recomputed"] > 0


def test_an_optimizer_brings_its_own_state(tmp_path: Path) -> None:
    adamw = _account(tmp_path, *STACK)
    muon = _account(tmp_path, *STACK, "--set", "model.optimizer.name=muon")
    blocks = sum(adamw["parameters"]["trained"][part] for part in ("attention", "ffn"))
    assert adamw["memory"]["optimizer"] - muon["memory"]["optimizer"] == 4 * blocks


def test_relora_learns_more_before_its_factors_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = [f"--config={ROOT}/experiments/{name}.yaml" for name in ("sizes/tiny_xs", "methods/relora")]
    found = _account(tmp_path, *stack)
    model = Llama(ModelConfig.from_mapping(found["model"]))
    for rule, parameter in weight_rules(model):
        rule.enter(parameter, Place(step=0, total=9, restart_every=3))
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    full, memory = found["full_rank_steps"], found["memory"]
    assert learning > found["parameters"]["trained"]["total"]
    assert (full["trained"], full["gradients"], full["optimizer"]) == (learning, 4 * learning, 8 * learning)
    assert full["total"] - memory["total"] == 12 * (learning - found["parameters"]["trained"]["total"])
    assert f"at full rank before them {learning:,} parameters learn" in " ".join(capsys.readouterr().out.split())
    assert _account(tmp_path, *stack, "--set=model.config.weights.relora_full_rank_cycles=0")["full_rank_steps"] is None


def test_all_sizes_and_methods_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method, at two sizes: a row takes as long at any."""
    sizes, every = {"1b", "7b"}, account._names
    monkeypatch.setattr(account, "_names", lambda kind: [n for n in every(kind) if kind == "methods" or n in sizes])
    rows = _account(tmp_path, "--all", "--dtype=bf16-true")
    printed = capsys.readouterr().out
    methods = {p.stem for p in (ROOT / "experiments/methods").glob("*.yaml")}
    refused = set(re.findall(r"^not possible: (\S+) (\S+):", printed, re.MULTILINE))
    assert {(r["size"], r["method"]) for r in rows} | refused == {(s, m) for s in sizes for m in methods}
    by_name = {(r["size"], r["method"]): r for r in rows}
    assert by_name["1b", "full_rank_swiglu"]["parameters"] == 1_339_082_752
    assert by_name["1b", "full_rank_swiglu"]["weights"] == 2 * 1_339_082_752
    assert by_name["7b", "elas"]["flops_with_24"] < by_name["7b", "elas"]["flops_per_token"]
    assert by_name["7b", "lowrank_relu2"]["flops_with_24"] == by_name["7b", "lowrank_relu2"]["flops_per_token"]
    assert "…" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        ([*STACK, "--batch=0"], "account: batch = 0 is not possible"),
        ([*STACK, "--dtype=fp8"], "account: precision = 'fp8' is not possible: choose one of 32-true"),
        ([*STACK, "--device=tpu"], "account: device = 'tpu'"),
        (["--all", "--checkpointing=all"], "account: checkpointing = 'all'"),
        ([*STACK, "--set", "model.config.rnak=3"], "model.config.rnak"),
        ([*STACK, "--json=/nowhere/account.json"], "--json /nowhere/account.json cannot be written"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_configuration_or_all_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["account"])
    assert exit_.value.code == 2
    assert "--config --all is required" in capsys.readouterr().err
