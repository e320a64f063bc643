"""A sweep whose workers and runs are killed at random: what :mod:`test_sweep_kills` and the database's tests share.

The cheap run is a recurrence in place of a training, with checkpoints of its own; everything else is the real thing.
"""

import csv
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from elas_lightning.layout import RESULT_NAME
from elas_lightning.processes import hold
from elas_lightning.result import RunResult
from elas_lightning.runner import RunRequest
from elas_lightning.sweep.isolated import IsolatedRun
from elas_lightning.sweep.run import Request, open_study, rejoin_study
from elas_lightning.sweep.study import Study
from elas_lightning.sweep.worker import Budget, Timing, Worker
from elas_lightning.training.recorder import CURVE_FIELDS

STEPS = 12
COMPLETED = "completed.txt"
FAST = Timing(heartbeat=0.3, grace=3.0, poll=0.2)


def cheap_run(request: RunRequest) -> RunResult:
    """Iterate a chaotic map from the run's own configuration: any step lost or taken twice shows in the last bit."""
    directory = request.directory
    with hold(directory, 10):
        if (directory / RESULT_NAME).exists():
            return RunResult.read(directory)
        seed, rate = (int(request.overrides["seed_everything"]), 3.6 + float(request.overrides["model.optimizer.lr"]))
        kept = directory / "state.json"
        step, value = json.loads(kept.read_text()) if kept.exists() else (0, 1 / (seed + 3))
        while step < STEPS:
            time.sleep(0.01)
            step, value = step + 1, rate * value * (1 - value)
            _write(kept, [step, value])
            _write(directory / "progress.json", _progress(step))
        with (directory / "curve.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, CURVE_FIELDS)
            writer.writeheader()
            writer.writerow({"step": STEPS, "val_perplexity": value})
        metrics = {"val_perplexity": value, "seconds": 1.0}
        result = RunResult(directory.name, "complete", None, seed, {}, [], {}, metrics, {}, {}, {}, "", "")
        result.write(directory)
        with (directory.parent / COMPLETED).open("a") as file:
            file.write(f"{directory.name}\n")
        return result


def _progress(step: int) -> dict[str, Any]:
    validated = step if step == STEPS else -1
    return {
        "step": step,
        "max_steps": STEPS,
        "validated_step": validated,
        "tokens": step,
        "seconds": 1.0,
        "train_loss": 1.0,
        "pid": os.getpid(),
        "time": time.time(),
    }


def _write(path: Path, content: Any) -> None:
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(content))
    os.replace(staged, path)


def make_project(overlay: Path, folder: Path, points: int) -> Path:
    """A working directory with ``sweeps/kills.yaml``: some points with 2 seeds."""
    root = folder / "project"
    for made in ("experiments/sizes", "sweeps"):
        (root / made).mkdir(parents=True)
    (root / "experiments/sizes/small.yaml").write_text(overlay.read_text())
    write_sweep(root, "kills", [0.01 * i for i in range(1, points + 1)], {})
    return root


def write_sweep(root: Path, name: str, rates: list[float], overrides: dict[str, Any]) -> None:
    spec = {
        "question": "Does it survive?",
        "base": ["sizes/{size}"],
        "machines": {kind: {"size": "small", "data": "inside"} for kind in ("cpu", "gpu")},
        "search": {"lr": {"keys": ["model.optimizer.lr"], "choices": rates}},
        "seeds": [0, 1],
        "overrides": overrides,
    }
    (root / f"sweeps/{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def open_cheap(name: str, url: str | None) -> Study:
    """The study of ``sweeps/<name>.yaml`` in the working directory, its workers impatient."""
    request = Request(name, storage=url, timing=FAST)
    return open_study(request.plan(), request)


def work(project: Path, name: str, url: str | None) -> None:
    """What a worker's process does."""
    os.chdir(project)
    start = partial(IsolatedRun, make=cheap_run, method="fork")
    study = rejoin_study(Request(name, storage=url, timing=FAST), None)  # as a crew's members do
    Worker([study], Budget(None), FAST, start=start).work()


class Crew:
    """Worker processes that are replaced when they die.

    Args:
        project: Their working directory.
        name: Of the sweep.
        url: Of its storage.
        workers: How many.
    """

    def __init__(self, project: Path, name: str, url: str | None, workers: int) -> None:
        self._arguments = (project, name, url)
        # a server that has this module: a worker is there as soon as it is forked
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "elas_lightning.runner"])
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> Any:
        process = self._context.Process(target=work, args=self._arguments)
        process.start()
        return process

    def replace_the_dead(self) -> bool:
        """Start killed workers anew; whether anyone is still at work."""
        for index, process in enumerate(self._workers):
            if not process.is_alive() and process.exitcode != 0:
                assert process.exitcode == -signal.SIGKILL, f"a worker ended with {process.exitcode} by itself"
                self._workers[index] = self._start()
        return any(process.is_alive() for process in self._workers)

    def processes(self) -> list[tuple[str, int]]:
        """Workers and their runs: what each is, and its number."""
        alive = [process.pid for process in self._workers if process.is_alive()]
        found = [("worker", pid) for pid in alive]
        for pid in alive:
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                found += [("run", int(child)) for child in children]
        return found

    def stop(self) -> None:
        for process in self._workers:
            process.kill()
            process.join()


def kill_at_random(crew: Crew, kills: int, seed: int, between: tuple[float, float]) -> Counter[str]:
    """SIGKILL workers and runs at random times, no run twice in a row; how often each kind was hit."""
    draw, hit = random.Random(seed), Counter[str]()
    while sum(hit.values()) < kills and crew.replace_the_dead():
        time.sleep(draw.uniform(*between))
        targets = crew.processes()
        kind = draw.choice(("worker", "run"))
        chosen = [pid for what, pid in targets if what == kind]
        if chosen:
            with suppress(ProcessLookupError):
                os.kill(draw.choice(chosen), signal.SIGKILL)
                hit[kind] += 1
    return hit


def finish(crew: Crew, seconds: float) -> None:
    """Wait until every worker has left by itself, replacing those that were killed."""
    deadline = time.monotonic() + seconds
    while crew.replace_the_dead():
        assert time.monotonic() < deadline, "the sweep does not come to its end"
        time.sleep(0.05)


def check_complete(study: Study) -> dict[str, Any]:
    """Assert that each place of a grid is complete exactly once, with all its results; these, by run.

    Returns:
        Metrics by run, and each trial's value by its point.
    """
    trials = study.study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    wanted = list(study.plan.spec.grid())
    assert sorted(_point(t) for t in complete) == sorted(json.dumps(p, sort_keys=True) for p in wanted)
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert {t.user_attrs["ended"] for t in trials if t.state == TrialState.FAIL} <= {"lost", "duplicate"}
    results = {event.result.run: event.result for event in study.events()}
    assert len(results) == study.plan.planned_runs
    assert {result.state for result in results.values()} == {"complete"}
    return {
        "runs": {run: asdict(result)["metrics"] for run, result in results.items()},
        "points": {_point(t): t.values for t in complete},
    }


def unbroken(project: Path) -> dict[str, Any]:
    """What the same sweep comes to with one worker that nobody kills."""
    (project / "runs/kills").rename(project / "runs/killed")
    work(project, "kills", None)
    return check_complete(open_cheap("kills", None))


def check_made_once(folder: Path, runs: int) -> None:
    """Assert that every run came to its end once; one that was killed after its end may not have said so."""
    completed = Counter((folder / "runs" / COMPLETED).read_text().split())
    assert set(completed.values()) == {1}
    assert runs - 2 <= len(completed) <= runs


def _point(trial: FrozenTrial) -> str:
    return json.dumps(trial.params, sort_keys=True)


optuna.logging.set_verbosity(optuna.logging.WARNING)
