"""The bytes of an account against those of real tensors: saved for backward, allocated, and after a real step."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from measure import Live, saved_for_backward, storage_bytes
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, ModelConfig, SparsityConfig
from elas_lightning.nn import loss as loss_module
from elas_lightning.nn.account import TrainingStep, activations, kv_cache_bytes, memory_account, parameter_account
from elas_lightning.nn.experts_config import ExpertsConfig
from elas_lightning.nn.loss import linear_next_token_loss
from elas_lightning.nn.weights_config import WeightsConfig
from elas_lightning.ops.patterns import METHODS, PATTERNS, STOCHASTIC, width_multiple

TOLERANCE = 0.02
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
SITES = ("ffn_hidden", "ffn_input", "ffn_bottleneck", "attention_input", "attention_output")


def build(config: ModelConfig, precision: str) -> Llama:
    model = Llama(config)
    return model.to(torch.bfloat16) if precision == "bf16-true" else model


def loss_of(model: Llama, input_ids: Tensor, precision: str) -> Tensor:
    mixed = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    with mixed:
        nll, tokens = linear_next_token_loss(model.hidden(input_ids), model.lm_head.weight, input_ids)
    return nll / tokens


def measured(config: ModelConfig, batch: int, sequence: int, precision: str, sparse: bool = True) -> int:
    """Bytes that a real forward pass keeps, without parameters and inputs."""
    model = build(config, precision)
    model.set_sparsity(sparse)
    input_ids = torch.randint(config.vocab_size, (batch, sequence))
    with saved_for_backward() as saved:
        loss_of(model, input_ids, precision)
    given = storage_bytes([input_ids, *model.parameters()])
    return sum(size for at, size in storage_bytes(saved).items() if at not in given)


def accounted(config: ModelConfig, step: TrainingStep) -> int:
    account = memory_account(config, step)
    return account["activations"] + account["weight_copies"]


def random_case(seed: int) -> tuple[ModelConfig, int, int, bool]:
    """Any model that can be built: odd sizes, each FFN, storage, placement, pattern, method, gradient and backward."""
    draw = random.Random(seed)
    heads, layers = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3])
    width = heads * draw.choice([4, 8, 12, 20])
    ffn = draw.choice(["swiglu", "relu2", "relu2", "relu2", "relu", "gelu", "silu"])
    ranks = [r for r in (4, 8, 12) if r <= width]
    ffn_rank = draw.choice([None, *ranks])
    placement = [s for s in SITES if draw.random() < 0.5 and not (s == "ffn_bottleneck" and ffn_rank is None)]
    storages = ["dense"]
    if ffn == "relu2":
        storages += ["recompute", *(["packed"] if "ffn_hidden" in placement else [])]
    attention_rank = draw.choice([None, *ranks])
    # every pattern and method is drawn often; what knows 2:4 by magnitude alone decides for itself
    pattern, method = (draw.choice(PATTERNS), draw.choice(METHODS)) if draw.random() < 0.7 else ("2:4", "magnitude")
    backward = draw.choice(["dense", "feature_wise"] if "ffn_hidden" in placement else ["dense"])
    widths = {"ffn_bottleneck": ffn_rank or 0, "ffn_hidden": 0}
    if any(widths.get(site, width) % width_multiple(pattern) for site in placement):
        pattern = "2:4"
    if (pattern, method, backward) != ("2:4", "magnitude", "dense") and "ffn_hidden" in placement:
        storages = ["dense"]
    low_rank = attention_rank is not None or ffn_rank is not None
    experts = draw.choice([1, 1, 2, 5])
    if method in STOCHASTIC and any(site.startswith("ffn") for site in placement):
        experts = 1  # refused
    config = ModelConfig(
        vocab_size=draw.randint(50, 150),
        hidden_size=width,
        intermediate_size=16 * draw.randint(2, 5),
        num_layers=layers,
        num_heads=heads,
        attention_rank=attention_rank,
        ffn_rank=ffn_rank,
        ffn=ffn,
        bottleneck_activation=draw.choice([None, "silu"]) if low_rank else None,
        ffn_storage=draw.choice(storages),
        experts=ExpertsConfig(experts, draw.randint(1, min(experts, 3))),
        sparsity=SparsityConfig(
            tuple(placement),
            layers=draw.choice(["all", "second_half"]),
            gradient=draw.choice(["ste", "masked"]),
            pattern=pattern,
            method=method,
            backward=backward,
            backward_dense_share=draw.choice([0.0, 0.05]),
            backward_permutation=draw.random() < 0.5,
        ),
    )
    return config, draw.randint(1, 4), draw.choice([3, 17, 40, 130]), draw.random() < 0.8


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", range(40))
def test_activations_are_those_that_autograd_keeps_at_random_shapes(seed: int, precision: Any) -> None:
    config, batch, sequence, sparse = random_case(seed)
    step = TrainingStep(batch, sequence, precision, device="cpu", sparse=sparse)
    kept = measured(config, batch, sequence, precision, sparse)
    assert accounted(config, step) == pytest.approx(kept, rel=TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backward", ["dense", "feature_wise"])
@pytest.mark.parametrize("method", METHODS)
def test_every_pattern_and_method_with_the_masked_gradient(swiglu, method: Any, backward: Any, precision: Any) -> None:
    """At all sites at once; relu, squared ReLU and a gate differ in what else keeps the step's input."""
    for pattern, ffn in zip(PATTERNS, ("relu2", "relu", "swiglu", "gelu", "relu2"), strict=True):
        sparsity = SparsityConfig(SITES, gradient="masked", pattern=pattern, method=method, backward=backward)
        silu = "silu" if ffn in ("relu", "gelu") else None
        config = swiglu(attention_rank=8, ffn_rank=16, ffn=ffn, bottleneck_activation=silu, sparsity=sparsity)
        step = TrainingStep(3, 40, precision, device="cpu")
        assert accounted(config, step) == pytest.approx(measured(config, 3, 40, precision), rel=0.002)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gradient", ["ste", "masked"])
@pytest.mark.parametrize("changes", [{"ffn": "relu2"}, {"ffn": "relu"}, {"ffn": "gelu"}, {"ffn_storage": "packed"}])
def test_a_kernel_reads_its_input_again(elas, changes: dict[str, Any], gradient: Any, precision: Any) -> None:
    """Triton's interpreter, or the real kernels where there is a GPU, as ``tests/conftest.py`` decides."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter, on a processor, is what this measures")
    config = elas(**changes, backend="triton", num_layers=1, sparsity=SparsityConfig(SITES, gradient=gradient))
    step = TrainingStep(2, 10, precision, device="cpu")
    assert accounted(config, step) == pytest.approx(measured(config, 2, 10, precision), rel=0.002)


def test_the_masked_gradient_costs_a_byte_an_entry(elas) -> None:
    """The measure itself can tell the difference: one byte of each of F = 80 hidden features."""
    step = TrainingStep(2, 12, "32-true", device="cpu")
    ste, masked = (
        accounted(elas(sparsity=SparsityConfig(("ffn_hidden",), gradient=g)), step) for g in ("ste", "masked")
    )
    assert masked - ste == 2 * 2 * 12 * 80


def test_kept_tensors_have_a_layer_a_kind_and_a_name(elas) -> None:
    kept = activations(elas(), TrainingStep(2, 12, device="cpu"))
    assert {(k.layer, k.kind) for k in kept if k.layer is not None} == {
        (n, kind) for n in (0, 1) for kind in ("norms", "attention", "ffn")
    }
    hidden = next(k for k in kept if k.name == "hidden" and k.layer == 1)
    assert hidden.bytes == 2 * 2 * 80 * 24
    assert sum(k.bytes for k in kept) == memory_account(elas(), TrainingStep(2, 12, device="cpu"))["activations"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("low_rank", [False, True])
def test_weights_gradients_and_optimizer_are_those_of_real_tensors(
    swiglu, elas, precision: Any, low_rank: bool
) -> None:
    config = (elas if low_rank else swiglu)()
    model = build(config, precision)
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model, torch.randint(97, (2, 12)), precision).backward()
    optimizer.step()
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    account = memory_account(config, TrainingStep(2, 12, precision))
    real = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": state,
    }
    for name, tensors in real.items():
        assert account[name] == pytest.approx(sum(storage_bytes(tensors).values()), rel=TOLERANCE)


WEIGHTS = [
    {"method": "sltrain", "sltrain_density": 0.1},
    {"method": "relora"},
    {"method": "sr_ste"},
    {"method": "s_ste"},
    {"method": "transposable", "layers": "ffn"},
    {"method": "asp"},
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: weights["method"])
@pytest.mark.parametrize(("batch", "changes"), [(1, {"ffn": "relu2"}), (5, {})])
def test_methods_that_act_on_weights(
    swiglu, weights: dict[str, Any], changes: dict[str, Any], batch: int, precision: Any
) -> None:
    if weights["method"] in ("sltrain", "relora"):
        changes = {**changes, "attention_rank": 8, "ffn_rank": 12}
    config = swiglu(**changes, weights=WeightsConfig(**weights))
    model = build(config, precision)
    input_ids = torch.randint(97, (batch, 7))
    given = storage_bytes([input_ids, *model.parameters(), *model.buffers()])
    with saved_for_backward() as saved:
        loss_of(model, input_ids, precision)
    kept = sum(size for at, size in storage_bytes(saved).items() if at not in given)
    account = memory_account(config, TrainingStep(batch, 7, precision, device="cpu"))
    assert account["activations"] + account["weight_copies"] == pytest.approx(kept, rel=TOLERANCE)
    held = sum(storage_bytes([*model.parameters(), *model.buffers()]).values())
    assert account["weights"] == pytest.approx(held, rel=TOLERANCE)
    parameters = parameter_account(config)
    assert parameters["stored"]["total"] == sum(p.numel() for p in model.parameters())


def test_another_optimizer_brings_its_own_entries(elas) -> None:
    account = memory_account(elas(), TrainingStep(2, 12, "bf16-true"), optimizer_entries=7)
    assert account["optimizer"] == 2 * 7


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointing", ["block", "bottleneck"])
@pytest.mark.parametrize(
    "changes",
    [
        {"ffn": "swiglu"},
        {},
        {"bottleneck_activation": "silu"},
        {"ffn_storage": "packed"},
        {"sparsity": SparsityConfig(("ffn_hidden",), backward="feature_wise", method="mvue", gradient="masked")},
    ],
)
def test_what_checkpointing_keeps(elas, precision: Any, checkpointing: Any, changes: dict[str, Any]) -> None:
    """Allocated bytes after forward."""
    changes = {"sparsity": SparsityConfig(("ffn_hidden",)), **changes}
    config = elas(**changes, num_layers=3, checkpointing=checkpointing)
    model = build(config, precision)
    input_ids = torch.randint(97, (4, 40))
    with Live([input_ids, *model.parameters()]) as live:
        loss = loss_of(model, input_ids, precision)
        allocated = live.now()
    step = TrainingStep(4, 40, precision, device="cpu", checkpointing=checkpointing)
    account = memory_account(config, step)
    assert account["activations"] + account["weight_copies"] == pytest.approx(allocated, rel=TOLERANCE)
    assert loss.requires_grad  # and so all of it is still needed


def test_a_bottleneck_cannot_be_kept_where_there_is_none(swiglu) -> None:
    with pytest.raises(UserError, match="checkpointing = 'bottleneck' is not possible"):
        memory_account(swiglu(), TrainingStep(1, 1, checkpointing="bottleneck"))


@pytest.mark.parametrize(("vocabulary", "larger"), [(97, "recomputed"), (50_000, "logits")])
def test_what_comes_and_goes_at_different_times_counts_once_in_the_total(elas, vocabulary: int, larger: str) -> None:
    account = memory_account(elas(vocab_size=vocabulary), TrainingStep(4, 64, checkpointing="block"))
    assert account[larger] == max(account["logits"], account["recomputed"])
    assert min(account["logits"], account["recomputed"]) > 0
    throughout = ("weights", "gradients", "optimizer", "weight_copies", "activations")
    assert account["total"] == sum(account[part] for part in throughout) + account[larger]


def test_recomputed_is_what_one_block_adds_to_the_kept(elas) -> None:
    one, two = (memory_account(elas(num_layers=n), TrainingStep(4, 40, device="cpu"))["activations"] for n in (1, 2))
    step = TrainingStep(4, 40, device="cpu", checkpointing="block")
    casts = memory_account(elas(num_layers=1), TrainingStep(4, 40, device="cpu"))["weight_copies"]
    assert memory_account(elas(), step)["recomputed"] == two - one + casts


def test_hopper_keeps_one_dense_copy_of_two(elas) -> None:
    step = TrainingStep(4, 40, "bf16-mixed", device="cuda")
    sparsity = SparsityConfig(placement=("ffn_hidden",))
    plain, kept, nothing = (
        memory_account(elas(backend=backend, ffn_storage=storage, sparsity=sparsity), step)["activations"]
        for backend, storage in (("triton", "dense"), ("hopper", "dense"), ("hopper", "recompute"))
    )
    assert plain - kept == kept - nothing > 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1000, 64])
def test_logits_are_the_peak_of_head_and_loss(
    swiglu, precision: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary so large that nothing else counts; in one chunk and in several."""
    vocabulary, tokens = 5000, 256
    monkeypatch.setitem(loss_module._CHUNK_ENTRIES, "cpu", rows * vocabulary)
    product = torch.float32 if precision == "32-true" else torch.bfloat16
    hidden = torch.randn(tokens, 1, dtype=product)
    weight = torch.randn(vocabulary, 1, dtype=product)
    labels = torch.randint(vocabulary, (tokens,))
    with Live([]) as live:
        loss_module._sum_nll(hidden, weight, labels, product, True)
    config = swiglu(vocab_size=vocabulary)
    step = TrainingStep(1, tokens, precision, device="cpu")
    assert memory_account(config, step)["logits"] == pytest.approx(live.peak, rel=TOLERANCE)


def test_kv_cache(swiglu) -> None:
    # two layers, keys and values, 3 sequences of 10 tokens, 32 features of 2 bytes
    assert kv_cache_bytes(swiglu(), 3, 10) == 2 * 2 * 3 * 10 * 32 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"sequence": True}, "sequence = True"),
        ({"precision": "64"}, "choose one of 32-true, bf16-mixed, 16-mixed"),
        ({"checkpointing": "layer"}, "choose one of none, block, bottleneck"),
        ({"device": "tpu"}, "choose one of cpu, cuda"),
    ],
)
def test_steps_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingStep(**{"batch": 1, "sequence": 1, **changes})
