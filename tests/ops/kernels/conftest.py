"""The kernels' tests draw the same numbers each time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
