"""Where these tests run: on a GPU where there is one, else in Triton's interpreter or around stand-ins.

Without anything of the suite's own conftest, which needs more than torch and triton: they run on a bare GPU box.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
