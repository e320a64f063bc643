"""The FFN of a few tokens skips rows, with the result of the ordinary path; what computes it has a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, SparsityConfig
from elas_lightning.nn import ffn as ffn_module
from elas_lightning.nn.ffn import UngatedFFN, ffn_choice, ffn_path, make_ffn
from elas_lightning.ops import backend, decode, measured
from elas_lightning.ops.backend import BackendChoice

CPU = torch.device("cpu")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every call that decoded; on a CPU any size does."""
    calls: list[int] = []
    plain = ffn_module.lowrank_ffn_decode

    def spy(z: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(z.numel() // z.shape[-1])
        return plain(z, *arguments, **options)

    monkeypatch.setattr(ffn_module, "lowrank_ffn_decode", spy)
    monkeypatch.setattr(decode, "_WORTH_COUNTING", 0)
    monkeypatch.setattr(decode, "_GATHER_COST", 1)
    return calls


@pytest.mark.parametrize("rank", [8, None])
@pytest.mark.parametrize("active", [False, True])
def test_a_few_tokens_without_gradients_decode(elas: Any, decoded: list[int], active: bool, rank: int | None) -> None:
    config = elas(ffn_rank=rank, initialization="xavier", sparsity=SparsityConfig(("ffn_hidden",)))
    ffn = UngatedFFN(config, 0).double().eval()
    ffn.hidden_site.set_active(active)
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 20, config.hidden_size, dtype=torch.float64)
    few = x[:, :3]
    expected = ffn(few)
    assert decoded == []
    with torch.no_grad():
        torch.testing.assert_close(ffn(few), expected, rtol=1e-12, atol=1e-9)
        assert decoded == [3]
        ffn(x)
        ffn.train()
        ffn(few)
    assert decoded == [3]


def test_a_changed_weight_is_seen_and_training_frees_the_copy(elas: Any, decoded: list[int]) -> None:
    ffn = UngatedFFN(elas(), 0).eval()
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 1, ffn.config.hidden_size)
    with torch.no_grad():
        first = ffn(x)
        assert ffn._rows is not None
        ffn.load_state_dict({name: 2 * value for name, value in ffn.state_dict().items()})
        second = ffn(x)
        torch.testing.assert_close(second, first * 2**6, rtol=1e-4, atol=1e-4)  # 2 factors squared, 2 more
        ffn.to(torch.float64)
        torch.testing.assert_close(ffn(x.double()).float(), second, rtol=1e-4, atol=1e-3)
    assert len(decoded) == 3
    assert "_rows" not in ffn.state_dict()
    ffn.train()
    assert ffn._rows is None


def test_other_activations_do_not_decode(elas: Any, decoded: list[int]) -> None:
    with torch.no_grad():
        for kind in ("gelu", "swiglu"):
            Llama(elas(ffn=kind)).eval()(torch.zeros(1, 2, dtype=torch.int64))
    assert decoded == []


def test_a_small_model_on_a_processor_takes_the_ordinary_path(
    elas: Any, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_WORTH_COUNTING", 2**22)
    with torch.no_grad():
        Llama(elas()).eval()(torch.zeros(1, 2, dtype=torch.int64))
    assert decoded == []


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elas: Any) -> Iterator[Path]:
    """A record of this processor: what keeps nothing is fastest without gradients."""
    config = elas()
    case = {"rank": config.ffn_rank, "d_ff": config.ffn_width, "tokens": 64, "dtype": "float32"}
    seconds = {"reference dense": 2.0, "reference recompute": 1.0}
    kinds = [{"sparsity": "2:4", "direction": d, "compiled": False} for d in ("training", "forward")]
    cases = [{**case, **kind, "seconds": seconds} for kind in kinds]
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"device": measured.device_name(CPU), "cases": cases}))
    monkeypatch.setenv("ELAS_MEASUREMENTS", str(tmp_path))
    for cached in (measured.measurements, backend._fastest):
        cached.cache_clear()
    yield path
    for cached in (measured.measurements, backend._fastest):
        cached.cache_clear()


def test_the_choice_of_auto_is_named_with_its_record(elas: Any, record: Path) -> None:
    config = elas(sparsity=SparsityConfig(("ffn_hidden",)))
    training = ffn_choice(config, CPU, 50, "float32")
    assert (training.chosen, training.storage) == ("reference", "dense")
    assert str(record) in training.why
    assert "hidden features kept" in ffn_path(config, CPU, training)
    forward = ffn_choice(config, CPU, 50, "float32", "forward")
    assert forward.storage == "recompute"
    assert "nothing d_ff wide kept" in ffn_path(config, CPU, forward)
    assert "nothing is measured near" in ffn_choice(config, CPU, 50, "bfloat16").why
    assert ffn_choice(elas(ffn="gelu"), CPU, 50, "float32").storage is None


@pytest.mark.parametrize(
    ("chosen", "storage", "words"),
    [
        ("cusparselt", "packed", "packed form that cuSPARSELt multiplies, which are kept as they are"),
        ("cusparselt", "recompute", "packed form that cuSPARSELt multiplies; hidden_backward_kernel"),
        ("cusparselt", "dense", "(ffn_storage dense only without gradients)"),
        ("cusparselt_compress", "recompute", "cuSPARSELt compresses and multiplies"),
        ("cusparselt_compress", "packed", "(ffn_storage packed only without gradients)"),
    ],
)
def test_every_path_has_words(elas: Any, chosen: str, storage: str, words: str) -> None:
    assert words in ffn_path(elas(), CPU, BackendChoice(chosen, chosen, "named", storage))


@pytest.mark.parametrize("chosen", ["hopper", "cusparselt_compress"])
def test_a_storage_that_training_will_be_refused_is_refused_before_the_warmup(elas: Any, chosen: Any) -> None:
    config = elas(backend=chosen, ffn_storage="packed", sparsity=SparsityConfig(("ffn_hidden",)))
    with pytest.raises(UserError, match=rf"ffn_storage = 'packed' .* backend {chosen} .* choose recompute"):
        make_ffn(config, 0)
