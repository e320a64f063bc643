"""The commands as a person types them: what they print, and that a mistake costs one line and nothing else."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fitting import Forked, elas, wait_until

from elas_lightning.cli import main

ROOT = Path(__file__).resolve().parent.parent


def _elas(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """In a process of its own: exit code, standard output and error as a shell sees them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "elas_lightning", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused, and give its one line."""
    try:
        code: object = main(arguments)
    except SystemExit as exit_:  # argparse's way
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_help_of_bench_is_of_all_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "[{train-step,ffn,prefill,decode,memory-account,loader,gpu}]" in capsys.readouterr().out


def test_help_is_instant_because_it_imports_no_torch() -> None:
    code = (
        "import sys; from elas_lightning.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    best = 60.0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        best = min(best, time.perf_counter() - start)
    assert done.stdout.endswith("False\n")
    for command in (
        "fit", "validate", "sweep", "plots", "report", "generate", "export", "import", "eval", "compare", "account",
        "bench",
    ):  # fmt: skip
        assert f"    {command} " in done.stdout
    assert best < 1.0


def test_fit_leaves_a_result_and_validate_measures_its_checkpoint(overlay: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(overlay), "--checkpoint.every_n_train_steps", "4"]
    fit = _elas("fit", *arguments, cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr
    assert fit.stderr == ""
    assert fit.stdout.splitlines()[-1] == "results: runs/fit/000"
    assert {p.name for p in (tmp_path / "runs/fit/000").iterdir()} >= {"result.json", "curve.csv", "telemetry.csv"}
    # the directory stands for its newest checkpoint, as it does for `elas eval`
    validate = ["validate", *arguments, "--ckpt_path", "runs/fit/000"]
    assert Forked(elas, validate, tmp_path, "errors").end() == 0, (tmp_path / "errors").read_text()
    assert "val_perplexity" in (tmp_path / "log").read_text()
    assert (tmp_path / "errors").read_text() == ""


def test_print_config_shows_the_whole_stack(overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(overlay), "--model.config.ffn_rank=8", "--print_config"])
    assert end.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["config"]["ffn_rank"] == 8
    assert config["model"]["config"]["hidden_size"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.config.ffn_rank=17"], "ffn_rank = 17 is not possible: give 1 to 16"),
        (["--model.config.num_heads=3"], "num_heads = 3"),
        (["--model.config.vocab_size=100"], "vocab_size is 100 but the tokenizer .* has 300 ids"),
        (["--data.lanes=9"], "data.lanes=9 is more than the 4 training shards"),
        (["--data.num_workers=3"], "data.num_workers=3 cannot share"),
        (["--data.tokenizer=nowhere.json"], "nowhere.json"),
        (["--trainer.max_steps=-1"], "trainer.max_steps is not set"),
        (["--trainer.accelerator=abacus"], "abacus"),
    ],
)
def test_fit_refuses_in_one_line(
    overlay: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = _refused(capsys, "fit", "--config", str(overlay), *arguments)
    assert re.search(message, line), line
    assert not list(tmp_path.glob("runs/*/*/result.json"))


def test_an_empty_stack_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "stack a size overlay" in _refused(capsys, "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["swep"], "invalid choice: 'swep'"),
        (["sweep"], "required: name"),
        (["sweep", "x", "--set", "novalue"], "'novalue' is not KEY=VALUE"),
        (["sweep", "x", "--budget", "-1"], "-1 is no span of time"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _refused(capsys, *arguments)
    assert message in line
    assert "--help` shows what there is" in line


def test_a_dry_run_lists_the_commands_of_its_runs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("experiments", "sweeps"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "rank_ablation", "--size", "tiny", "--data", "pydocs", "--dry-run"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    assert lines[0].startswith("low-rank ReLU², rank 1, seed 0: elas fit --config experiments/sizes/tiny.yaml")
    assert not (tmp_path / "runs").exists()
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has seen enough
    with open(writer, "w", buffering=1) as unread, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", unread)
        assert main(command) == 128 + signal.SIGPIPE


def test_sigterm_stops_a_fit_with_its_exit_code_and_a_checkpoint(overlay: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--config", str(overlay), "--trainer.max_steps=100000", "--trainer.default_root_dir=mine"]
    process = Forked(elas, arguments, tmp_path)
    curve = tmp_path / "mine/curve.csv"
    assert wait_until(lambda: curve.exists() and curve.read_text().count("\n") > 3, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.end() == 128 + signal.SIGTERM
    error = (tmp_path / "log").read_text()
    assert "stopped" in error
    assert "Traceback" not in error
    assert (tmp_path / "mine/checkpoints/last.ckpt").exists()
