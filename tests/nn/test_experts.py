"""Mixtures of experts against a loop over tokens; what they cost; where they stand in training and generation."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from measure import accounted_flops, step_flops
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.nn import ExpertsConfig, Llama, ModelConfig, SparsityConfig
from elas_lightning.nn.account import count_parameters
from elas_lightning.nn.cache import Cache
from elas_lightning.nn.experts import MixtureOfExperts
from elas_lightning.nn.telemetry import layer_statistics, sparsity_statistics
from elas_lightning.nn.weights_config import WeightsConfig

HIDDEN = SparsityConfig(("ffn_hidden",))
CHANGES: list[dict[str, Any]] = [
    {"ffn": "swiglu"},
    {"ffn": "relu2", "ffn_rank": 12, "sparsity": HIDDEN},
    {"ffn": "relu2", "ffn_rank": 12, "sparsity": HIDDEN, "ffn_storage": "packed"},
    {"ffn": "relu2", "ffn_rank": 12, "sparsity": HIDDEN, "ffn_storage": "recompute"},
    {"ffn": "gelu", "ffn_rank": 8, "bottleneck_activation": "silu"},
    {"ffn": "relu2", "sparsity": replace(HIDDEN, backward="feature_wise", gradient="masked")},
]


def mixture(config: ModelConfig) -> MixtureOfExperts:
    made = Llama(config).double().layers[0].get_submodule("mlp")
    assert isinstance(made, MixtureOfExperts)
    return made


def token_by_token(mixture: MixtureOfExperts, x_TC: Tensor, per_token: int) -> Tensor:
    rows = []
    for x_C in x_TC:
        probability_E = torch.softmax((mixture.router.weight @ x_C).float(), 0)
        best = sorted(range(len(probability_E)), key=lambda e: -float(probability_E[e].detach()))[:per_token]
        rows.append(sum(probability_E[e] * mixture.experts[e](x_C[None])[0] for e in best))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize(("count", "per_token"), [(2, 1), (3, 2), (5, 5)])
def test_it_is_a_weighted_sum_over_each_tokens_experts(
    swiglu, count: int, per_token: int, changes: dict[str, Any]
) -> None:
    made = mixture(swiglu(**changes, experts=ExpertsConfig(count, per_token)))
    x_TC = torch.randn(14, 32, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(made(x_TC.view(2, 7, 32)).view(14, 32), token_by_token(made, x_TC, per_token))


@pytest.mark.parametrize("changes", CHANGES[:-1])  # the last one's weight gradients look at tokens together
def test_its_gradients_are_those_of_the_sum(swiglu, changes: dict[str, Any]) -> None:
    made = mixture(swiglu(**changes, experts=ExpertsConfig(3, 2)))
    x_TC = torch.randn(14, 32, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(14, 32, dtype=torch.float64)
    inputs = [x_TC, *made.parameters()]
    found = torch.autograd.grad((made(x_TC) * towards).sum(), inputs)
    expected = torch.autograd.grad((token_by_token(made, x_TC, 2) * towards).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # the router is float32


@pytest.mark.parametrize(
    ("changes", "backend"),
    [*((changes, "reference") for changes in CHANGES), *((changes, "triton") for changes in CHANGES[1:4])],
)
def test_an_expert_without_tokens_has_a_gradient_of_zeros(swiglu, changes: dict[str, Any], backend: Any) -> None:
    """Other processes wait for it where training is distributed."""
    model = Llama(swiglu(**changes, backend=backend, experts=ExpertsConfig(4, 1)))
    for block in model.layers:
        block.mlp.router.weight.data[2:] = -block.mlp.router.weight.data[:2]  # type: ignore[union-attr, index]
    ids = torch.zeros(1, 1, dtype=torch.int64)  # one token, three experts without
    nll, tokens = model.loss(ids, ids)
    (nll / tokens).backward()
    for block in model.layers:
        sums = [sum(float(p.grad.abs().sum()) for p in e.parameters()) for e in block.mlp.experts]  # type: ignore[union-attr]
        assert sum(found > 0 for found in sums) == 1


def test_balance_is_one_where_experts_share_evenly_and_grows_to_their_number(swiglu) -> None:
    made = mixture(swiglu(experts=ExpertsConfig(4)))
    torch.nn.init.zeros_(made.router.weight)
    assert made.route(torch.randn(64, 32, dtype=torch.float64)).balance.item() == pytest.approx(1)
    made.router.weight.data[3] = 100.0
    assert made.route(torch.ones(64, 32, dtype=torch.float64)).balance.item() == pytest.approx(4)


def test_balance_is_equation_4(swiglu) -> None:
    made = mixture(swiglu(experts=ExpertsConfig(3, 2)))
    x_TC = torch.randn(50, 32, dtype=torch.float64)
    probability_TE = (x_TC @ made.router.weight.T).softmax(1)
    chosen_TE = torch.zeros_like(probability_TE).scatter(1, probability_TE.topk(2).indices, 1.0)
    expected = 3 * (chosen_TE.sum(0) / 100 * probability_TE.mean(0)).sum()
    torch.testing.assert_close(made.route(x_TC).balance.double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("checkpointing", ["none", "block", "bottleneck"])
def test_the_balance_loss_reaches_the_routers_once(elas, input_ids, checkpointing: Any) -> None:
    config = elas(experts=ExpertsConfig(3, 1, balance=0.5), checkpointing=checkpointing)
    model = Llama(config)
    nll, tokens = model.loss(input_ids, input_ids)
    balance = model.balance_loss()
    assert isinstance(balance, Tensor)
    assert balance.item() == pytest.approx(0.5 * sum(float(block.mlp.balance) for block in model.layers))  # type: ignore[union-attr, arg-type]
    (nll / tokens + balance).backward()
    with_it = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert not any(block.mlp.balance.requires_grad for block in model.layers)  # type: ignore[union-attr]

    plain = Llama(replace(config, checkpointing="none"))
    plain.load_state_dict(model.state_dict())
    nll, tokens = plain.loss(input_ids, input_ids)
    routes = []
    for block in plain.layers:
        block.mlp.register_forward_pre_hook(lambda mlp, arguments: routes.append(mlp.route(arguments[0].flatten(0, 1))))
    plain.hidden(input_ids)
    (nll / tokens + 0.5 * sum(route.balance for route in routes)).backward()
    for found, parameter in zip(with_it, plain.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", ["block", "bottleneck"])
def test_backward_may_have_another_default_dtype(elas, input_ids, checkpointing: Any) -> None:
    """As with Lightning's 64-true, which changes it in forward alone."""
    model = Llama(elas(experts=ExpertsConfig(3, 2), checkpointing=checkpointing)).double()
    try:
        torch.set_default_dtype(torch.float64)
        loss = model.loss(input_ids, input_ids)[0] + model.balance_loss()
    finally:
        torch.set_default_dtype(torch.float32)
    loss.backward()


def test_a_model_can_be_copied_after_a_call(elas, input_ids) -> None:
    model = Llama(elas(experts=ExpertsConfig(2)))
    expected = model(input_ids)
    assert torch.equal(deepcopy(model)(input_ids), expected)


def test_without_routers_nothing_is_added(elas, input_ids) -> None:
    model = Llama(elas())
    model.loss(input_ids, input_ids)
    assert model.balance_loss() == 0.0


def test_there_is_no_balance_before_the_first_call(elas) -> None:
    with pytest.raises(RuntimeError, match="has not been called"):
        Llama(elas(experts=ExpertsConfig(2))).balance_loss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routers_work_in_float32_and_the_output_has_an_ffns_dtype(elas, dtype: torch.dtype) -> None:
    model = Llama(elas(experts=ExpertsConfig(3))).to(dtype)
    made, plain = model.layers[0].mlp, Llama(elas()).to(dtype).layers[0].mlp
    x = torch.randn(2, 5, 32, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        routes = made.route(x.flatten(0, 1))  # type: ignore[operator]
        assert made(x).dtype == plain(x).dtype == torch.bfloat16
    assert routes.weight_TK.dtype == torch.float32
    expected = torch.nn.functional.linear(x.float(), made.router.weight.float()).softmax(-1)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(routes.weight_TK[:, 0], expected.amax(-1).flatten(), rtol=1e-6, atol=0.0)


# how many tokens an expert has ends a graph, and the next one begins with what is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_training_gives_the_same_gradients(elas, input_ids) -> None:
    config = elas(experts=ExpertsConfig(3, 2))
    model, plain = Llama(config), Llama(config)
    plain.load_state_dict(model.state_dict())
    for one, step in ((model, torch.compile(Llama.loss, backend="aot_eager")), (plain, Llama.loss)):
        nll, tokens = step(one, input_ids, input_ids)
        (nll / tokens + one.balance_loss()).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_cache_gives_the_logits_of_the_whole_text(elas, input_ids) -> None:
    config = elas(experts=ExpertsConfig(4, 2), sparsity=HIDDEN)
    model = Llama(config).eval()
    with torch.inference_mode():
        whole = model(input_ids)
        cache = Cache(config.num_layers, input_ids.shape[1])
        parts = [model(part, cache) for part in input_ids.split([5, 1, 1, 3, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", ["none", "block", "bottleneck"])
@pytest.mark.parametrize("changes", CHANGES[:2] + CHANGES[4:])
@pytest.mark.parametrize(("count", "per_token"), [(2, 1), (5, 3)])
def test_flops_are_what_torch_counts(
    swiglu, count: int, per_token: int, changes: dict[str, Any], checkpointing: Any
) -> None:
    if checkpointing == "bottleneck" and "ffn_rank" not in changes:
        changes = {**changes, "attention_rank": 8}
    config = swiglu(**changes, experts=ExpertsConfig(count, per_token), checkpointing=checkpointing)
    assert 32 * accounted_flops(config, 16) == step_flops(Llama(config), torch.randint(97, (2, 16)))


def test_parameters_are_those_of_the_model(elas) -> None:
    config = elas(experts=ExpertsConfig(5, 2))
    model = Llama(config)
    counted = count_parameters(config)
    assert counted["total"] == sum(p.numel() for p in model.parameters())
    assert counted["ffn"] == sum(p.numel() for block in model.layers for p in block.mlp.parameters())
    assert counted["ffn"] == 5 * count_parameters(elas())["ffn"] + 2 * 5 * 32


def test_telemetry_has_a_row_a_layer_and_tells_the_busiest_expert(elas, input_ids) -> None:
    model = Llama(elas(experts=ExpertsConfig(3, 1), sparsity=HIDDEN))
    selections: dict[tuple[int, str], Tensor] = {}
    for _ in range(2):
        rows = layer_statistics(model, input_ids, input_ids, selections)
        assert [(row["layer"], row["site"]) for row in rows] == [(0, "ffn_hidden"), (1, "ffn_hidden")]
        for row in rows:
            assert "mask_drift" not in row
            assert 0 < row["gradient_cosine"] <= 1
            assert 1 <= row["effective_rank_hidden"] <= 24
            assert 1 <= row["effective_rank_up"] <= 12
    mlp = model.layers[0].mlp
    seen: list[Tensor] = []
    mlp.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].flatten(0, 1)))
    with torch.no_grad():
        model.hidden(input_ids)
        routes = mlp.route(seen[0])  # type: ignore[operator]
        x_PC = seen[0][routes.order_P]
        hidden = torch.cat(
            [e.hidden(part) for e, part in zip(mlp.experts, x_PC.split(routes.tokens_E.tolist()), strict=True)]  # type: ignore[union-attr, arg-type, operator]
        )
    assert rows[0]["busiest_expert"] == float(routes.tokens_E.max()) / 8  # of 24 tokens
    assert rows[0]["natural_zeros"] == pytest.approx(float((hidden == 0).float().mean()))


def test_a_plain_model_has_no_busiest_expert(elas, input_ids) -> None:
    assert "busiest_expert" not in sparsity_statistics(Llama(elas()), input_ids)[0]


def test_other_placements_inside_experts_are_tallied_over_all_of_them(elas, input_ids) -> None:
    sparsity = SparsityConfig(("ffn_bottleneck", "ffn_input", "attention_input"))
    model = Llama(elas(experts=ExpertsConfig(3, 2), sparsity=sparsity))
    rows = sparsity_statistics(model, input_ids, {})
    assert {row["site"] for row in rows} == {"attention_input", "ffn_bottleneck", "ffn_hidden", "ffn_input"}
    drift = {row["site"] for row in rows if "mask_drift" in row}
    assert drift == {"attention_input"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, r"experts\.count = 0 .*an integer of at least 1"),
        ({"count": 2.0}, r"experts\.count = 2\.0 .*an integer"),
        ({"count": 4, "per_token": 0}, r"experts\.per_token = 0 .*at least 1"),
        ({"count": 4, "per_token": 5}, r"experts\.per_token = 5 .*a layer has 4"),
        ({"count": 4, "balance": -0.1}, r"experts\.balance = -0\.1 .*a finite number of at least 0"),
        ({"count": 4, "balance": float("inf")}, r"experts\.balance = inf .*a finite number"),
        ({"count": 4, "balance": True}, r"experts\.balance = True .*a finite number"),
    ],
)
def test_what_no_mixture_can_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExpertsConfig(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 4}, r"experts = 4 .*give an ExpertsConfig"),
        (
            {"experts": ExpertsConfig(2), "weights": WeightsConfig("sr_ste")},
            r"experts\.count = 2 .*weights\.method sr_ste .*choose plain",
        ),
        (
            {"experts": ExpertsConfig(2), "sparsity": SparsityConfig(("ffn_hidden",), method="mvue")},
            r"experts\.count = 2 .*sparsity\.method mvue .*choose magnitude",
        ),
    ],
)
def test_what_experts_do_not_go_with_is_refused(swiglu, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        swiglu(**changes)


def test_a_stochastic_step_outside_the_ffn_goes_with_experts(swiglu, input_ids) -> None:
    sparsity = SparsityConfig(("attention_input",), method="mvue")
    assert Llama(swiglu(experts=ExpertsConfig(2), sparsity=sparsity))(input_ids).isfinite().all()


def test_a_configuration_of_before_experts_is_read(elas) -> None:
    fields = asdict(elas())
    del fields["experts"]
    assert ModelConfig.from_mapping(fields) == elas()
