"""Where these tests run: on a GPU where there is one, else in Triton's interpreter or around stand-ins.

Without anything of the suite's own conftest, which needs more than torch and triton: they run on a bare GPU box.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from elas_lightning.ops import backend


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _forgotten_devices() -> Iterator[None]:
    """What a test says of a device holds for that test."""
    backend._capability.cache_clear()
    yield
    backend._capability.cache_clear()
