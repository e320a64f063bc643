"""What a notebook has: runs and sweeps as objects, figures as values, and nothing changed behind its back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from synthetic import rank_sweep
from synthetic_runs import three_methods, write_run

import elas_lightning
from elas_lightning import load_run, load_sweep, plots
from elas_lightning.analysis.load import SweepResults
from elas_lightning.analysis.run import RunResults
from elas_lightning.errors import UserError


def test_a_run_is_an_object(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "mine", "elas", 3, loss=4.0))
    assert run.result["seed"] == 3
    assert run.config["model"]["config"]["ffn"] == "relu2"
    assert run.metrics["val_loss"] == 4.0
    assert run.curve["train_loss"].notna().sum() == 3
    assert run.curve["tokens"].max() == 60_000
    assert set(run.telemetry["site"]) == {"ffn_hidden"}
    assert repr(run).endswith("mine': complete, seed 3, perplexity 54.60)")
    shown = run._repr_html_()
    for piece in ("mine", "54.60", "Peak memory (MB)", "AMD EPYC", "elas fit --config"):
        assert piece in shown


def test_a_sweep_says_what_it_is_in_a_line(tmp_path: Path) -> None:
    sweep = load_sweep(rank_sweep(tmp_path / "s", seeds=[1]))
    assert repr(sweep) == f"SweepResults('{tmp_path / 's'}': 8 runs, searched rank, method)"


def test_a_page_escapes_what_a_run_says(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "mine", environment={"hardware": "<b>&"}))
    assert "&lt;b&gt;&amp;" in run._repr_html_()


def test_a_run_without_curve_or_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine")
    (folder / "curve.csv").unlink()
    (folder / "telemetry.csv").unlink()
    assert load_run(folder).curve.empty
    (folder / "result.json").write_text("{}")
    with pytest.raises(UserError, match="has no run, state, seed, config, metrics"):
        load_run(folder)
    (folder / "result.json").write_text('{"run": "a", "state": "complete", "seed": 0, "config": {}, "metrics": null}')
    with pytest.raises(UserError, match="metrics is None, where a mapping belongs"):
        load_run(folder)
    with pytest.raises(UserError, match="give the directory of a run that has ended"):
        load_run(tmp_path / "nothing")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RunResults], SweepResults]:
    """Runs of three methods and a sweep; to be read only."""
    folder = tmp_path_factory.mktemp("results")
    runs = [load_run(path) for path in sorted(three_methods(folder / "runs").iterdir())]
    return runs, load_sweep(rank_sweep(folder / "sweep", importances={"rank": 0.9, "method": 0.1}))


@pytest.mark.parametrize(
    "draw",
    [
        lambda runs, sweep: plots.curves(*runs),
        lambda runs, sweep: plots.curves(runs[0]),
        lambda runs, sweep: plots.curves(*runs, value="train_loss", x="step"),
        lambda runs, sweep: plots.curves(sweep, series="rank", style="method"),
        lambda runs, sweep: plots.pareto(*runs, x="parameters"),
        lambda runs, sweep: plots.pareto(sweep, series="rank"),
        lambda runs, sweep: plots.bars(*runs, metric="tokens_per_second"),
        lambda runs, sweep: plots.bars(sweep, x="method", group="rank"),
        lambda runs, sweep: plots.differences(*runs),
        lambda runs, sweep: plots.differences(sweep, x="rank", baseline=8),
        lambda runs, sweep: plots.telemetry(*runs[:3], value="dropped_energy"),
        lambda runs, sweep: plots.telemetry(sweep, filter={"method": "elas"}),
        lambda runs, sweep: plots.metric_by(sweep, x="rank", series="method"),
        lambda runs, sweep: plots.heatmap(sweep, x="rank", y="method"),
        lambda runs, sweep: plots.parallel(sweep),
        lambda runs, sweep: plots.importance(sweep),
    ],
)
def test_each_function_gives_a_figure_and_changes_nothing(
    results: tuple[list[RunResults], SweepResults], tmp_path: Path, draw: Callable[..., Figure]
) -> None:
    before = dict(matplotlib.rcParams)
    figure = draw(*results)
    assert isinstance(figure, Figure)
    assert figure.axes
    assert dict(matplotlib.rcParams) == before
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 3000


def test_a_mixture_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "mine"))
    sweep = load_sweep(rank_sweep(tmp_path / "sweep"))
    for given in ((), (run, sweep), (sweep, sweep), ("runs/fit/000",)):
        with pytest.raises(UserError, match="give one sweep"):
            plots.curves(*given)
    with pytest.raises(UserError, match="fewer than two points"):
        plots.pareto(run)
    with pytest.raises(UserError, match="metric 'val_los' is unknown"):
        plots.curves(run, value="val_los")


def test_everything_public_is_there() -> None:
    for name in elas_lightning.__all__:
        assert getattr(elas_lightning, name) is not None
    assert set(plots.__all__) <= set(dir(plots))


def test_what_would_be_drawn_otherwise_than_asked_is_refused(results: tuple[list[RunResults], SweepResults]) -> None:
    runs, sweep = results
    with pytest.raises(UserError, match="curves has no option 'valu': there are series, style, x, value"):
        plots.curves(*runs, valu="train_loss")
    with pytest.raises(UserError, match="a metric_by plot needs `x`"):
        plots.metric_by(sweep)
    with pytest.raises(UserError, match="train_loss is not known of a run as a whole: a `curves` plot"):
        plots.bars(sweep, x="rank", metric="train_loss")
    with pytest.raises(UserError, match="filter='rank=4': give a mapping"):
        plots.bars(sweep, x="rank", filter="rank=4")
    # the best of them, without a word
    with pytest.raises(UserError, match="one configuration, and these runs have 3: elas, full, lowrank"):
        plots.telemetry(*runs)
