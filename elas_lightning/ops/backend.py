"""The one place where a backend is chosen, and where a backend that cannot run is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from elas_lightning.errors import UserError

BACKENDS = ("auto", "reference", "triton", "cusparselt")
# What the kernels are compiled for in the tests; below it the hardware has no bfloat16.
_OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class BackendChoice:
    """What was asked for, what runs, and why; plain strings, so that a result file can hold it."""

    requested: str
    chosen: str
    why: str


def resolve_backend(requested: str, device: torch.device) -> BackendChoice:
    """Decide which backend runs on a device.

    Args:
        requested: ``auto`` or a backend's name.
        device: Where the tensors lie.

    Returns:
        The choice. The caller logs it: this function keeps no state and writes nothing.

    Raises:
        UserError: ``requested`` is unknown, or names a backend that cannot run on ``device``.
    """
    if requested == "reference":
        return BackendChoice(requested, "reference", "named")
    if requested == "auto":
        why = f"no other backend has been measured to be faster on {device.type}"
        return BackendChoice(requested, "reference", why)
    if requested == "triton":
        return BackendChoice(requested, "triton", _triton_runs(device))
    allowed = "choose reference (any device), triton (CUDA) or auto"
    if requested in BACKENDS:
        raise UserError(f"backend {requested!r} cannot run here: this release does not contain it; {allowed}")
    raise UserError(f"backend {requested!r} is unknown: {allowed}")


def check_kernel_dtype(x: torch.Tensor) -> None:
    """Refuse what the kernels do not compute.

    Args:
        x: Input of a kernel.

    Raises:
        UserError: Not float16, bfloat16 or float32 (a ValueError, too).
    """
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise UserError(
            f"backend 'triton' computes float16, bfloat16 and float32, not {x.dtype}: choose reference"
        )


def _triton_runs(device: torch.device) -> str:
    """Why Triton's kernels run on ``device``, or a refusal."""
    cannot = "backend 'triton' cannot run here: "
    otherwise = "; choose reference or auto"
    if find_spec("triton") is None:
        raise UserError(f"{cannot}triton is not installed (pip install 'elas-lightning[gpu]'){otherwise}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "named; Triton's interpreter computes it, to check and not to be fast"
    if device.type != "cuda":
        raise UserError(f"{cannot}it needs a CUDA device, this is {device.type}{otherwise}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        found = ".".join(map(str, capability))
        raise UserError(f"{cannot}it needs compute capability 8.0, this device has {found}{otherwise}")
    return "named"
