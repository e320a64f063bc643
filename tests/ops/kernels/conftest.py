"""Where the kernels run: on a GPU where there is one, else in Triton's interpreter (see ``tests/conftest.py``)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
