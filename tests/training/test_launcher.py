"""``elas fit`` on two devices as a user types it: Lightning starts the second process itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from elas_lightning.layout import shipped_folder
from elas_lightning.training.checkpoints import read

SCALE = shipped_folder("experiments").resolve() / "scale"


def _command(overlay: Path, scale: str) -> list[str]:
    stack = [part for path in (overlay, SCALE / f"{scale}.yaml") for part in ("--config", str(path))]
    # long enough to be stopped on the way
    own = {"devices": 2, "num_nodes": 1, "max_steps": 40, "val_check_interval": 20}
    given = [f"--trainer.{key}={value}" for key, value in own.items()]
    given += ["--model.optimizer.name=loro", "--checkpoint.every_n_train_steps=20"]
    return [sys.executable, "-m", "elas_lightning", "fit", *stack, *given]


def _child(parent: int) -> int:
    """The process that a process has started."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        if children := (task / "children").read_text().split():
            return int(children[0])
    raise AssertionError("there is but one process")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the second process in Linux's /proc")
@pytest.mark.parametrize(
    ("scale", "told"), [("ddp_node", "both"), ("ddp_node", "second"), ("fsdp_node", "first"), ("fsdp_nodes", "second")]
)
def test_a_stopped_run_of_two_processes_goes_on_by_the_same_command(
    overlay: Path, tmp_path: Path, scale: str, told: str
) -> None:
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = _command(overlay, scale)
    with subprocess.Popen(command, cwd=tmp_path, env=own, stderr=subprocess.PIPE, text=True) as process:
        try:
            curve = tmp_path / "runs/fit/000/curve.csv"
            deadline = time.monotonic() + 180
            while not curve.exists() or len(curve.read_text().splitlines()) < 5:
                assert process.poll() is None, process.stderr.read() if process.stderr else None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            pids = {"first": [process.pid], "second": [_child(process.pid)]}
            for pid in pids.get(told, [*pids["first"], *pids["second"]]):
                os.kill(pid, signal.SIGTERM)
            assert process.wait(timeout=120) == 128 + signal.SIGTERM
        finally:
            process.kill()
    stopped_at = read(tmp_path / "runs/fit/000/checkpoints/last.ckpt")["global_step"]
    assert 0 < stopped_at < 40
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"going on with runs/fit/000 from step {stopped_at}" in done.stdout
    assert [path.name for path in (tmp_path / "runs/fit").iterdir()] == ["000"]
    result = json.loads((tmp_path / "runs/fit/000/result.json").read_text())
    assert (result["state"], result["environment"]["world_size"]) == ("complete", 2)
    weights = read(tmp_path / "runs/fit/000/checkpoints/last.ckpt")["state_dict"]
    unbroken = subprocess.run(
        [*command, "--trainer.default_root_dir=whole"], cwd=tmp_path, env=own, capture_output=True, timeout=240
    )
    assert unbroken.returncode == 0
    expected = read(tmp_path / "whole/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
