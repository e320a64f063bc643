"""The one place where a backend is chosen, and where a backend that cannot run is refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elas_lightning.errors import UserError

BACKENDS = ("auto", "reference", "triton", "cusparselt")


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
        UserError: ``requested`` is unknown, or names a backend that this release cannot run.
    """
    if requested == "reference":
        return BackendChoice(requested, "reference", "named")
    if requested == "auto":
        return BackendChoice(requested, "reference", f"the only backend of this release, on {device.type}")
    allowed = "choose reference (any device) or auto"
    if requested in BACKENDS:
        raise UserError(f"backend {requested!r} cannot run here: this release does not contain it; {allowed}")
    raise UserError(f"backend {requested!r} is unknown: {allowed}")
