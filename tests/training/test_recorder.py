"""The curve and telemetry files of a run."""

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
from csv_rows import rows_of
from lightning.pytorch.callbacks import Callback

from elas_lightning import configuration
from elas_lightning.runner import RunRequest, run
from elas_lightning.training import recorder as recorder_module
from elas_lightning.training.interruption import Interrupted
from elas_lightning.training.recorder import CURVE_FIELDS, TELEMETRY_FIELDS, RunRecorder, _keep_rows
from elas_lightning.training.spikes import Spikes


def test_curve_has_a_row_per_step_and_per_validation(overlay: Path, tmp_path: Path) -> None:
    result = run(RunRequest(tmp_path / "run", [overlay]))
    rows = rows_of(tmp_path / "run/curve.csv")
    assert tuple(rows[0]) == CURVE_FIELDS
    assert [int(r["step"]) for r in rows if r["train_loss"]] == list(range(1, 13))
    assert [int(r["step"]) for r in rows if r["val_loss"]] == [5, 10, 12]
    assert float(rows[-1]["val_loss"]) == result.metrics["val_loss"]
    assert int(rows[-1]["tokens"]) == result.metrics["tokens"]
    assert 12 * 3 * 15 <= result.metrics["tokens"] <= 12 * 3 * 16
    seconds = [float(r["seconds"]) for r in rows]
    assert seconds == sorted(seconds)
    assert result.metrics["tokens_per_second"] == pytest.approx(result.metrics["tokens"] / result.metrics["seconds"])


class _Sums(Callback):
    """What each step sums up."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.steps.append((float(outputs["nll"]), int(outputs["tokens"])))


def test_the_training_loss_of_a_window_is_the_mean_over_its_tokens(overlay: Path, tmp_path: Path) -> None:
    watch = _Sums()
    rows = {"data.batching": "truncate", "data.sequence_length": 100}  # numbers of tokens differ
    result = run(RunRequest(tmp_path / "run", [overlay], {"trainer.log_every_n_steps": 4, **rows}), [watch])
    found = [row for row in rows_of(tmp_path / "run/curve.csv") if row["train_loss"]]
    steps = [int(row["step"]) for row in found]
    assert steps == [4, 5, 8, 10, 12]  # a validation ends a window, too
    for start, end, row in zip([0, *steps[:-1]], steps, found, strict=True):
        window = watch.steps[start:end]
        mean = sum(nll for nll, _ in window) / sum(tokens for _, tokens in window)
        assert float(row["train_loss"]) == pytest.approx(mean, rel=1e-6)
        assert int(row["tokens"]) == sum(tokens for _, tokens in watch.steps[:end])
    assert result.metrics["train_loss"] == float(found[-1]["train_loss"])


def test_a_row_has_the_rate_of_its_own_step(overlay: Path, tmp_path: Path) -> None:
    restarts = {"schedule": "cosine_restarts", "restart_every": 5, "restart_warmup_steps": 2, "min_lr_ratio": 1.0}
    changes = {f"model.optimizer.{key}": value for key, value in restarts.items()}
    run(RunRequest(tmp_path / "run", [overlay], changes))
    rates = [float(r["lr"]) for r in rows_of(tmp_path / "run/curve.csv") if r["lr"]]
    # two steps of warm-up; the fifth and the tenth, which for LORO are exact, come before the restarts
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01, 0.005, 0.01, 0.01, 0.01, 0.01, 0.005, 0.01])


def test_sparser_logging_loses_no_tokens(overlay: Path, tmp_path: Path) -> None:
    often = run(RunRequest(tmp_path / "often", [overlay]))
    seldom = run(RunRequest(tmp_path / "seldom", [overlay], {"trainer.log_every_n_steps": 7}))
    assert seldom.metrics["tokens"] == often.metrics["tokens"]
    assert len(rows_of(tmp_path / "seldom/curve.csv")) < len(rows_of(tmp_path / "often/curve.csv"))


def test_telemetry_has_each_layer_at_each_validation(overlay: Path, tmp_path: Path) -> None:
    run(RunRequest(tmp_path / "run", [overlay]))
    rows = rows_of(tmp_path / "run/telemetry.csv")
    assert tuple(rows[0]) == TELEMETRY_FIELDS
    assert {(int(r["step"]), int(r["layer"])) for r in rows} == {(s, n) for s in (5, 10, 12) for n in (0, 1)}
    assert all(0 < float(r["natural_zeros"]) < 1 and 0 <= float(r["dropped_energy"]) < 1 for r in rows)


def test_rows_past_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,tokens\n1,10\n2,20\n3,30\n")
    _keep_rows(path, ("step", "tokens"), 2)
    assert path.read_text().split() == ["step,tokens", "1,10", "2,20"]


def test_a_fresh_start_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,tokens\n1,10\n")
    _keep_rows(path, ("step", "tokens"), 0)
    assert path.read_text().split() == ["step,tokens"]


def test_telemetry_changes_no_loss(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: every training and validation loss of the run with telemetry is that of the run without."""
    losses = []
    for rows in (4, 0):
        monkeypatch.setattr(configuration, "RunRecorder", partial(RunRecorder, telemetry_rows=rows))
        run(RunRequest(tmp_path / str(rows), [overlay]))
        curve = rows_of(tmp_path / str(rows) / "curve.csv")
        losses.append([(r["step"], r["train_loss"], r["val_loss"]) for r in curve])
    assert losses[0] == losses[1]
    assert len(rows_of(tmp_path / "4/telemetry.csv")) == 6
    assert rows_of(tmp_path / "0/telemetry.csv") == []


def test_telemetry_is_numbers_by_step_layer_and_site(overlay: Path, tmp_path: Path) -> None:
    run(RunRequest(tmp_path / "run", [overlay]))
    rows = rows_of(tmp_path / "run/telemetry.csv")
    assert {r["site"] for r in rows} == {"ffn_hidden"}
    for name in TELEMETRY_FIELDS[3:]:
        # all steps come after the dense warm-up; at the first there is nothing to have drifted from
        blank = {int(r["step"]) for r in rows if r[name] == ""}
        expected = {"mask_drift": {5}, "busiest_expert": {5, 10, 12}}  # of one expert there is no busiest
        assert blank == expected.get(name, set())
        assert all(float(r[name]) >= 0 for r in rows if r[name])


def test_a_resumed_run_has_one_row_without_drift(overlay: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 7:
                signal.raise_signal(signal.SIGTERM)

    request = RunRequest(tmp_path / "run", [overlay])
    with pytest.raises(Interrupted):
        run(request, [Stop()])
    run(request)
    whole = run(RunRequest(tmp_path / "whole", [overlay]))
    resumed, straight = (rows_of(tmp_path / name / "telemetry.csv") for name in ("run", "whole"))
    assert [r["step"] for r in resumed if not r["mask_drift"]] == ["5", "5", "10", "10"]
    for one, other in zip(resumed, straight, strict=True):
        assert {**one, "mask_drift": ""} == {**other, "mask_drift": ""}
    losses = [r["train_loss"] for r in rows_of(tmp_path / "run/curve.csv")]
    assert losses == [r["train_loss"] for r in rows_of(tmp_path / "whole/curve.csv")]
    assert whole.state == "complete"


def test_spikes_are_marked_and_counted_once_across_a_resume(tmp_path: Path) -> None:
    """A run of windows above the rest is one spike, also where a resume falls into it."""
    calm, high = [3.0] * 20, [9.0, 9.0]
    straight = Spikes()
    marks = [straight.add(loss) for loss in [*calm, *high, 3.0, 9.0]]
    assert [i for i, mark in enumerate(marks) if mark] == [20, 21, 23]
    assert straight.count == 2
    rows = [f"{step},{loss}" for step, loss in enumerate([*calm, high[0], ""])]
    (tmp_path / "curve.csv").write_text("\n".join(["step,train_loss", *rows]))
    resumed = RunRecorder(tmp_path)
    resumed._rows = {"curve.csv": len(rows)}
    resumed._open_files(cast(L.Trainer, SimpleNamespace(is_global_zero=True)))
    for loss in (high[1], 3.0, 9.0):
        resumed.spikes.add(loss)
    assert resumed.spikes.count == 2


def test_energy_is_summed_over_training_and_travels_with_the_checkpoint(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meter:
        def __init__(self, device: object) -> None:
            pass

        def read(self) -> float:
            return 2.0

    monkeypatch.setattr(recorder_module, "EnergyMeter", Meter)
    result = run(RunRequest(tmp_path / "run", [overlay]))
    assert result.metrics["energy_joules"] == 2.0 * 12  # a window a step; what is read around validation is dropped
    assert result.metrics["tokens_per_joule"] == result.metrics["tokens"] / 24
    recorder = RunRecorder(tmp_path)
    recorder.load_state_dict({**recorder.state_dict(), "joules": 3.5})
    assert recorder.state_dict()["joules"] == 3.5


def test_a_torn_row_and_what_follows_it_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,tokens\n1,10\n2")
    assert [row["step"] for row in _keep_rows(path, ("step", "tokens"), 5)] == ["1"]
    assert path.read_text().split() == ["step,tokens", "1,10"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_window_that_a_checkpoint_cuts_through_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """On the same number of ranks each takes up its own part; on another the sum is taken up once."""
    saved = {
        **RunRecorder(tmp_path).state_dict(),
        "windows": [[1.5, 10, 2.0, 0.5], [2.5, 20, 3.0, 1.0]],
        "seconds": 4.0,
    }
    recorders = []
    for rank in range(ranks):
        monkeypatch.setattr(recorder_module, "rank_and_world_size", lambda rank=rank: (rank, ranks))
        recorders.append(RunRecorder(tmp_path))
        recorders[-1].load_state_dict(saved)
    windows = [tuple(r._window.plain()) for r in recorders]
    assert [sum(part) for part in zip(*windows, strict=True)] == [4.0, 30, 5.0, 1.5]
    assert windows[0] == ((1.5, 10, 2.0, 0.5) if ranks == 2 else (4.0, 30, 5.0, 1.5))
