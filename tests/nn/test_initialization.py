"""Each start has the moments its source gives."""

from __future__ import annotations

import pytest
import torch

from elas_lightning.nn import Llama, ModelConfig
from elas_lightning.nn.linear import LowRankLinear

WIDTH, RANK, FFN_WIDTH = 256, 32, 768


def model(**changes) -> Llama:
    torch.manual_seed(0)
    return Llama(
        ModelConfig(
            vocab_size=300,
            hidden_size=WIDTH,
            intermediate_size=512,
            num_layers=1,
            num_heads=4,
            attention_rank=RANK,
            ffn_rank=RANK,
            ffn="relu2",
            **changes,
        )
    )


def factors(initialization: str) -> LowRankLinear:
    """A layer from 256 to 768 features."""
    layer = model(initialization=initialization).layers[0].mlp.up_proj
    assert layer.B.shape == (FFN_WIDTH, RANK)
    return layer


def test_full_rank_parts_are_normal_and_norms_are_one() -> None:
    start = model(initializer_range=0.05)
    for weight in (start.embed_tokens.weight, start.lm_head.weight):
        assert weight.std().item() == pytest.approx(0.05, rel=0.02)
        assert abs(weight.mean().item()) < 1e-3
    assert (start.layers[0].input_layernorm.weight == 1).all()


def test_xavier() -> None:
    layer = factors("xavier")
    assert layer.A.std().item() == pytest.approx((2 / (WIDTH + RANK)) ** 0.5, rel=0.03)
    assert layer.B.std().item() == pytest.approx((2 / (FFN_WIDTH + RANK)) ** 0.5, rel=0.03)


def test_cola() -> None:
    layer = factors("cola")
    assert layer.A.std().item() == pytest.approx(layer.B.std().item(), rel=0.03)
    assert (layer.B @ layer.A).std().item() == pytest.approx((WIDTH + FFN_WIDTH) ** -0.5, rel=0.03)


def test_spectral_is_the_best_approximation_of_a_normal_matrix() -> None:
    layer = factors("spectral")
    values = torch.linalg.svdvals(layer.B @ layer.A)[:RANK]
    torch.testing.assert_close(layer.A @ layer.A.T, torch.diag(values), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.B.T @ layer.B, torch.diag(values), rtol=1e-4, atol=1e-5)
    # largest singular value of a normal matrix (Marchenko-Pastur edge)
    assert values[0].item() == pytest.approx(0.02 * (WIDTH**0.5 + FFN_WIDTH**0.5), rel=0.05)


def test_wide_lowrank_keeps_the_mean_square_in_an_orthonormal_basis() -> None:
    layer = factors("wide_lowrank")
    torch.testing.assert_close(layer.B.T @ layer.B, torch.eye(RANK), rtol=1e-4, atol=1e-5)
    x = torch.randn(2000, WIDTH)
    assert layer(x).square().mean().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("initialization", ["xavier", "cola", "spectral", "wide_lowrank"])
def test_every_weight_is_set_and_the_seed_decides(initialization) -> None:
    first, second = model(initialization=initialization), model(initialization=initialization)
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert one.isfinite().all(), name
        assert torch.equal(one, two), name
