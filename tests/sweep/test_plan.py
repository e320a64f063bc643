"""From points to runs."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from elas_lightning.commands.arguments import override
from elas_lightning.configuration import resolve
from elas_lightning.errors import UserError
from elas_lightning.sweep.plan import Plan
from elas_lightning.sweep.run import Request
from elas_lightning.sweep.space import distribution_of


def test_a_point_becomes_overlays_and_overrides(planned: Callable[..., Plan]) -> None:
    run = planned().run({"method": "ELAS", "rank": 0.25}, seed=3)
    assert run.values == {"method": "ELAS", "rank": 4}  # a quarter of the hidden size of 16
    assert run.label == "ELAS, rank 4"
    config = resolve(run.request.overlays, run.request.overrides)
    assert config["model"]["config"]["ffn_rank"] == config["model"]["config"]["attention_rank"] == 4
    assert config["model"]["config"]["sparsity"]["placement"] == ["ffn_hidden"]
    # initialisation and data order must not be drawn from the same stream
    assert (config["seed_everything"], config["data"]["seed"]) == (3, 1003)


def test_every_run_has_a_directory_of_its_own_that_says_what_it_is(planned: Callable[..., Plan]) -> None:
    plan = planned()
    directories = [run.request.directory for run in plan.runs()]
    assert len(set(directories)) == plan.planned_runs == 8
    assert directories[0].parent == Path("runs/mine/runs")
    assert directories[0].name.startswith("method-dense_rank-2_seed-0_")
    rates = {"lr": {"keys": ["model.optimizer.lr"], "choices": [2e6, 2e-6]}}
    names = [run.request.directory.name for run in planned(search=rates, plots=[], seeds=[0]).runs()]
    assert [name[:15] for name in names] == ["lr-2e06_seed-0_", "lr-2e-06_seed-0"]


def test_a_changed_overlay_makes_other_runs_and_a_reordered_sweep_the_same(
    project: Path, planned: Callable[..., Plan]
) -> None:
    point = {"method": "ELAS", "rank": 0.25}
    before = planned().run(point, 0).request.directory
    assert planned(question="Another?", seeds=[1, 0]).run(point, 0).request.directory == before
    overlay = project / "experiments/methods/elas.yaml"
    overlay.write_text(overlay.read_text() + "# changed\n")
    assert planned().run(point, 0).request.directory != before


def test_factors_of_a_rate_are_not_rounded(planned: Callable[..., Plan]) -> None:
    search = {"lr": {"keys": ["model.optimizer.lr"], "relative_to": "model.optimizer.lr", "choices": [0.25]}}
    plan = planned(search=search, plots=[])
    assert plan.run({"lr": 0.25}, 0).values == {"lr": 0.0025}
    assert plan.values(plan.spec.search[0]) == [0.0025]


def test_factors_change_several_keys_together(planned: Callable[..., Plan]) -> None:
    search = {
        "length": {"factors": {0.5: {"data.sequence_length": 0.5, "data.batch_size": 2}}},
        "method": {
            "overlays": {"dense": "methods/dense", "ELAS": "methods/elas"},
            "factors": {"dense": {"model.config.ffn_rank": 0.75}},
        },
    }
    plan = planned(search=search, plots=[])
    assert [run.values for run in plan.runs() if run.seed == 0] == [
        {"length": 0.5, "method": "dense"},
        {"length": 0.5, "method": "ELAS"},
    ]
    configs = [resolve(run.request.overlays, run.request.overrides) for run in plan.runs() if run.seed == 0]
    assert [(c["data"]["sequence_length"], c["data"]["batch_size"]) for c in configs] == [(8, 6)] * 2
    assert [c["model"]["config"]["ffn_rank"] for c in configs] == [3, 4]
    assert [c["model"]["config"]["sparsity"]["placement"] for c in configs] == [[], ["ffn_hidden"]]


def test_a_runs_steps_are_those_of_its_point(planned: Callable[..., Plan], project: Path) -> None:
    long = "trainer: {max_steps: 90}\nmodel: {optimizer: {warmup_steps: 2}}\n"
    (project / "experiments/methods/long.yaml").write_text(long)
    search = {"method": {"overlays": {"plain": "methods/elas", "long": "methods/long"}}}
    times = {"length": {"factors": {1: {"trainer.max_steps": 1}, 2: {"trainer.max_steps": 2}}}}

    def steps(plan: Plan) -> list[int]:
        found = [plan.steps_of(run) for run in plan.runs()]
        configs = [resolve(run.request.overlays, run.request.overrides) for run in plan.runs()]
        assert found == [config["trainer"]["max_steps"] for config in configs]
        return found

    plan = planned(search=search, seeds=[0], plots=[])
    assert steps(plan) == [12, 90]
    assert steps(planned(search=search, seeds=[0], plots=[], overrides={"trainer.max_steps": 7})) == [7, 7]
    assert sorted(steps(planned(search={**search, **times}, seeds=[0], plots=[]))) == [12, 12, 24, 24]


def test_factors_of_what_is_no_number_are_refused(planned: Callable[..., Plan]) -> None:
    for key, message in (("model.config.ffn", "is 'relu2': no number"), ("model.rnak", "no configuration key")):
        with pytest.raises(UserError, match=f"search.form.factors is '{key}', which {message}|is {message}"):
            planned(search={"form": {"factors": {"x": {key: 2}}}}, plots=[]).check()


def test_an_impossible_point_is_refused_before_the_first_run(planned: Callable[..., Plan]) -> None:
    ranks = {"rank": {"keys": ["model.config.ffn_rank"], "choices": [4, 99]}}
    with pytest.raises(UserError, match=r"sweep mine, rank 99: .*ffn_rank = 99 .*1 to 16"):
        planned(search=ranks, plots=[]).check()


def test_what_every_draw_of_a_search_would_trip_over_is_refused(planned: Callable[..., Plan]) -> None:
    drawn = {"sampler": "tpe", "trials": 2, "plots": []}
    for key, low in (("model.config.lairs", 1), ("model.config.num_layers", 0.5)):
        with pytest.raises(UserError, match=f"sweep mine: .*{key}"):
            planned(search={"depth": {"keys": [key], "low": low, "high": 2}}, **drawn).check()
    plan = planned(search={"depth": {"keys": ["model.config.num_layers"], "low": 1, "high": 2}}, **drawn)
    plan.check()
    assert distribution_of(plan, plan.spec.search[0]) == IntDistribution(1, 2)
    plan = planned(search={"decay": {"keys": ["model.optimizer.weight_decay"], "low": 0, "high": 1}}, **drawn)
    assert distribution_of(plan, plan.spec.search[0]) == FloatDistribution(0, 1)


def test_an_unknown_key_is_refused(planned: Callable[..., Plan]) -> None:
    with pytest.raises(UserError, match=r"model\.config\.rnak"):
        planned(search={"rank": {"keys": ["model.config.rnak"], "choices": [4]}}, plots=[]).check()
    reference = {"keys": ["model.config.ffn_rank"], "relative_to": "model.config.width", "choices": [0.5]}
    with pytest.raises(UserError, match=r"relative_to is 'model\.config\.width', which is no configuration key"):
        planned(search={"rank": reference}, plots=[]).check()


def test_unknown_sizes_and_sweeps_are_refused_with_those_there_are(project: Path) -> None:
    with pytest.raises(UserError, match=r"no overlay experiments/sizes/huge\.yaml: choose one of small"):
        Request("grid", "huge").plan().check()
    with pytest.raises(UserError, match="no sweep named 'gird': choose one of grid"):
        Request("gird").plan()


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("model.config.ffn_rank", "--set model.config.ffn_rank, which each run has from search.rank"),
        ("seed_everything", "--set seed_everything, which each run has from seeds"),
        ("data.seed", "--set data.seed, which each run has from seeds"),
    ],
)
def test_what_the_sweep_itself_sets_cannot_be_set(planned: Callable[..., Plan], key: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(planned(), overrides={key: 4}).check()


def test_an_override_that_a_dimension_would_hide_is_refused(planned: Callable[..., Plan]) -> None:
    with pytest.raises(UserError, match=r"overrides has .*ffn_rank, which each run has from search"):
        planned(overrides={"model.config.ffn_rank": 4}).check()
    with pytest.raises(UserError, match=r"overrides has .*ffn_rank, which each run has from search"):
        planned(overrides={"model.config": {"ffn_rank": 4}}).check()


def test_a_run_that_is_all_warm_up_is_refused_before_the_first(planned: Callable[..., Plan]) -> None:
    plan = planned(overrides={"trainer.max_steps": 5, "model.optimizer.warmup_steps": 5})
    with pytest.raises(UserError, match=r"warmup_steps is 5 but the run has 5 steps"):
        plan.check()
    planned(overrides={"trainer.fast_dev_run": 2, "model.optimizer.warmup_steps": 5}).check()


def test_a_value_that_is_searched_by_factors_may_be_set(planned: Callable[..., Plan]) -> None:
    rate = "model.optimizer.lr"
    search = {"lr": {"keys": [rate], "relative_to": rate, "choices": [0.5, 2.0]}}
    plan = replace(planned(search=search, plots=[]), overrides={rate: 0.01})
    plan.check()
    rates = {resolve(r.request.overlays, r.request.overrides)["model"]["optimizer"]["lr"] for r in plan.runs()}
    assert rates == {r.values["lr"] for r in plan.runs()} == {0.005, 0.02}


@pytest.mark.parametrize("value", [None, 1e-5, "1", "null", True, ["a", None], {"b": None}, 3, "c d"])
def test_the_command_of_a_sweep_sets_what_was_set(value: object) -> None:
    words = shlex.split(Request("grid", overrides={"data.path": value}).command)
    assert words[-2] == "--set"
    assert override(words[-1]) == ("data.path", value)


@pytest.mark.parametrize(
    "dimension",
    [
        {"keys": ["trainer.max_steps"], "choices": [4, 8]},
        {"factors": {1: {"trainer.max_steps": 1}, 2: {"trainer.max_steps": 2}}},
        {"overlays": {"dense": "methods/dense", "long": "methods/long"}},
    ],
)
def test_runs_of_several_lengths_are_not_pruned_against_each_other(
    project: Path, planned: Callable[..., Plan], dimension: dict[str, object]
) -> None:
    """A pruner that knows one length takes a longer run's steps for those of its next seed."""
    (project / "experiments/methods/long.yaml").write_text("trainer:\n  max_steps: 99\n")
    planned(search={"budget": dimension}, plots=[]).check()
    with pytest.raises(UserError, match=r"compares runs of one length, and search.budget changes trainer.max_steps"):
        planned(search={"budget": dimension}, plots=[], pruner="median").check()
    methods = {"method": {"overlays": {"dense": "methods/dense", "ELAS": "methods/elas"}}}
    planned(search=methods, plots=[], pruner="median").check()
