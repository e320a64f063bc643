"""Four workers on one study, and SIGKILLs at random: all trials complete once, none lost, none double."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from csv_rows import rows_of
from killed_sweep import (
    Crew,
    check_complete,
    check_made_once,
    finish,
    kill_at_random,
    make_project,
    open_cheap,
    unbroken,
    write_sweep,
)

from elas_lightning.sweep.run import Request, open_study


@pytest.fixture
def project(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_project(overlay, tmp_path, points=8)
    monkeypatch.chdir(root)
    return root


def _url(kind: str, project: Path) -> str | None:
    return f"journal://{(project / 'journal.log').resolve()}" if kind == "journal" else None


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_workers_and_runs_are_killed_and_nothing_is_lost_or_double(
    kind: str, project: Path, request: pytest.FixtureRequest
) -> None:
    kills, url = request.config.getoption("--kills") or 6, _url(kind, project)
    crew = Crew(project, "kills", url, workers=4)
    try:
        hit = kill_at_random(crew, kills, seed=0, between=(0.05, 0.2))
        finish(crew, 120)
    finally:
        crew.stop()
    assert sum(hit.values()) == kills
    study = open_cheap("kills", url)
    found = check_complete(study)
    check_made_once(study.plan.folder, 16)
    assert found == unbroken(project)


class Commands:
    """``elas sweep real``, several times at once, each started again when it dies."""

    def __init__(self, project: Path, storage: list[str], workers: int) -> None:
        self._project = project
        self._command = [sys.executable, "-m", "elas_lightning", "sweep", "real", *storage]
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self._project / "log.txt").open("ab") as log:
            return subprocess.Popen(self._command, cwd=self._project, stdout=log, stderr=log, env=environment)

    def replace_the_dead(self) -> bool:
        for index, process in enumerate(self._workers):
            code = process.poll()
            if code not in (None, 0):
                assert code == -signal.SIGKILL, (self._project / "log.txt").read_text()
                self._workers[index] = self._start()
        return any(process.poll() is None for process in self._workers)

    def processes(self) -> Iterator[tuple[str, int]]:
        """Workers, and runs by their descent: a number in a file may be another process's by now."""
        for process in self._workers:
            if process.poll() is None:
                yield "worker", process.pid
                for server in _children(process.pid):
                    yield from (("run", pid) for pid in _children(server))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.slow
def test_four_commands_on_one_study_survive_kills_bit_for_bit(project: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--kills") or 20
    steps = {"trainer.max_steps": 700, "trainer.val_check_interval": 100, "checkpoint.every_n_train_steps": 20}
    write_sweep(project, "real", [0.0005 * i for i in range(1, 7)], steps)
    _run_unbroken(project)
    began, draw, hit = time.monotonic(), random.Random(1), Counter[str]()
    crew = Commands(project, [], workers=4)
    while sum(hit.values()) < kills and crew.replace_the_dead():
        time.sleep(draw.uniform(0.3, 3))
        kind, chosen = draw.choice(("worker", "run")), list[int]()
        while crew.replace_the_dead() and not (chosen := [pid for what, pid in crew.processes() if what == kind]):
            time.sleep(0.05)  # nothing is being trained while all of them import torch
        if not chosen:
            break  # the sweep was faster
        os.kill(draw.choice(chosen), signal.SIGKILL)
        hit[kind] += 1
    while crew.replace_the_dead():
        assert time.monotonic() - began < 1500, (project / "log.txt").read_text()
        time.sleep(0.2)
    sweep = Request("real")
    found = check_complete(open_study(sweep.plan(), sweep))
    whole = {row["run"]: row for row in rows_of(project / "runs/unbroken/trials.csv")}
    for run, row in {row["run"]: row for row in rows_of(project / "runs/real/trials.csv")}.items():
        assert row["val_loss"] == whole[run]["val_loss"]
        curves = [_losses(project / "runs" / name / "runs" / run) for name in ("real", "unbroken")]
        assert curves[0] == curves[1]
    assert len(found["runs"]) == len(whole) == 12
    print(
        f"{kills} kills, {dict(hit)}, in {time.monotonic() - began:.0f} s: "
        f"{len(found['points'])} points complete once, {len(whole)} runs equal bit for bit"
    )
    assert sum(hit.values()) == kills


def _run_unbroken(project: Path) -> None:
    command = [sys.executable, "-m", "elas_lightning", "sweep", "real"]
    subprocess.run(command, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    (project / "runs/real").rename(project / "runs/unbroken")


def _losses(directory: Path) -> list[tuple[str, str, str]]:
    return [(row["step"], row["train_loss"], row["val_loss"]) for row in rows_of(directory / "curve.csv")]
