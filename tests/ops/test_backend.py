"""One place decides the backend, and never falls back in silence."""

from __future__ import annotations

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.ops import BackendChoice, backend, resolve_backend

CPU = torch.device("cpu")


def test_auto_says_what_it_chose_and_why() -> None:
    choice = resolve_backend("auto", CPU)
    assert (choice.requested, choice.chosen) == ("auto", "reference")
    assert "cpu" in choice.why


def test_named_reference() -> None:
    assert resolve_backend("reference", CPU) == BackendChoice("reference", "reference", "named")


@pytest.mark.parametrize("name", ["cusparselt", "cusparselt_compress"])
def test_the_sparse_product_needs_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for interpreter in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpreter)
        with pytest.raises(UserError, match=f"'{name}' cannot run here: .* choose reference .* or auto"):
            resolve_backend(name, CPU)


def test_the_sparse_product_needs_its_library_and_2_4_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert resolve_backend("cusparselt", cuda) == BackendChoice("cusparselt", "cusparselt", "named")
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    with pytest.raises(UserError, match="is built without cuSPARSELt; choose reference"):
        resolve_backend("cusparselt", cuda)
    backend._capability.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"needs compute capability 8\.0, this device has 7\.5"):
        resolve_backend("cusparselt", cuda)


def test_triton_on_a_processor_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in resolve_backend("triton", CPU).why
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match="needs a CUDA device, this is cpu; choose reference or auto"):
        resolve_backend("triton", CPU)


def test_triton_needs_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    with pytest.raises(UserError, match=r"triton is not installed \(pip install 'elas-lightning\[gpu\]'\)"):
        resolve_backend("triton", CPU)


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_triton_needs_a_gpu_that_knows_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], runs: bool
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if runs:
        assert resolve_backend("triton", torch.device("cuda")) == BackendChoice("triton", "triton", "named")
    else:
        with pytest.raises(UserError, match=r"compute capability 8.0, this device has 7.5"):
            resolve_backend("triton", torch.device("cuda"))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="'cuda' is unknown: choose reference"):
        resolve_backend("cuda", CPU)
