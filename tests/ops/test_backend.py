"""One place decides the backend, and never falls back in silence."""

from __future__ import annotations

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.ops import BackendChoice, resolve_backend

CPU = torch.device("cpu")


def test_auto_says_what_it_chose_and_why() -> None:
    choice = resolve_backend("auto", CPU)
    assert (choice.requested, choice.chosen) == ("auto", "reference")
    assert "cpu" in choice.why


def test_named_reference() -> None:
    assert resolve_backend("reference", CPU) == BackendChoice("reference", "reference", "named")


@pytest.mark.parametrize("name", ["triton", "cusparselt"])
def test_a_named_backend_that_cannot_run_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' cannot run here: .* choose reference .* or auto"):
        resolve_backend(name, CPU)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="'cuda' is unknown: choose reference"):
        resolve_backend("cuda", CPU)
