"""The steps of ``ops/storage.py`` by the kernels of this folder; dense steps are Triton's.

What is compiled on the spot by whatever compiler a machine has is tried there before it is believed: for each pair of
ranks and each dtype, on each device, a small problem is held against plain PyTorch once.

Shape suffixes: t tokens of a chunk, R rank, F hidden features, O output rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from elas_lightning.errors import UserError
from elas_lightning.ops.hopper import ffn
from elas_lightning.ops.measured import device_name
from elas_lightning.ops.steps import PlainSteps, TritonSteps

# Of the trial: more than one program's tokens, more than one tile of features, and neither whole.
_TRIAL_TOKENS, _TRIAL_FEATURES = 300, 400
# Relative, in the Frobenius norm. Its products are exact, so rounding is all there is; a wrong place shows as 1.
_TRIAL_TOLERANCE = 0.02


class HopperSteps(TritonSteps):
    """``hopper``: nothing kept, or relu of the pre-activations, dense: half of what autograd keeps."""

    backend = "hopper"

    def most_tokens(self, up_FR: Tensor, down_FO: Tensor, sparse: bool, backward: bool) -> int:
        if not sparse:
            return super().most_tokens(up_FR, down_FO, sparse, backward)
        if not backward and max(up_FR.shape[1], down_FO.shape[1]) <= ffn.FUSED_RANK:
            return sys.maxsize  # no workspace
        return self.within_workspace(up_FR)

    def most_kept_tokens(self, up_FR: Tensor) -> int:
        return self.within_workspace(up_FR)

    def empty_kept(self, like: Tensor, tokens: int, features: int) -> tuple[Tensor, Tensor]:
        return like.new_empty((tokens, features)), like.new_empty((tokens, 0), dtype=torch.uint8)

    def own_down(self, down_FO: Tensor) -> Tensor:
        return down_FO if down_FO.t().is_contiguous() else down_FO.t().contiguous().t()

    def forward(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, sparse: bool) -> Tensor:
        if not sparse:
            return super().forward(z_tR, up_FR, down_FO.contiguous(), sparse)
        _try_forward(z_tR.device, z_tR.dtype, z_tR.shape[1], down_FO.shape[1])
        return ffn.forward(z_tR, up_FR, down_FO.t())

    def forward_keeping(self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, values: Tensor, meta: Tensor) -> Tensor:
        _try_kept(z_tR.device, z_tR.dtype, z_tR.shape[1], down_FO.shape[1], False)
        return ffn.forward_keeping(z_tR, up_FR, down_FO.t(), values)

    def hidden_backward(
        self, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, sparse: bool, masked: bool
    ) -> tuple[Tensor, Tensor]:
        if not sparse:
            return super().hidden_backward(z_tR, up_FR, down_FO, grad_tO, sparse, masked)
        _try_backward(z_tR.device, z_tR.dtype, z_tR.shape[1], down_FO.shape[1], masked)
        return ffn.hidden_backward(z_tR, up_FR, down_FO, grad_tO, masked)

    def kept_backward(
        self, values: Tensor, meta: Tensor, z_tR: Tensor, up_FR: Tensor, down_FO: Tensor, grad_tO: Tensor, masked: bool
    ) -> tuple[Tensor, Tensor]:
        _try_kept(z_tR.device, z_tR.dtype, z_tR.shape[1], down_FO.shape[1], masked)
        return ffn.kept_backward(values, down_FO, grad_tO, masked)


@cache
def _try_forward(device: torch.device, dtype: torch.dtype, rank: int, out_rank: int) -> None:
    z, up, down, _ = _trial(device, dtype, rank, out_rank)
    expected = PlainSteps().forward(z, up, down, True)
    _hold(device, lambda: [ffn.forward(z, up, down.t().contiguous())], {"output": expected})


@cache
def _try_backward(device: torch.device, dtype: torch.dtype, rank: int, out_rank: int, masked: bool) -> None:
    z, up, down, grad = _trial(device, dtype, rank, out_rank)
    hidden, grad_hidden = PlainSteps().hidden_backward(z, up, down, grad, True, masked)
    expected = {"hidden features": hidden, "their gradient": grad_hidden}
    _hold(device, lambda: ffn.hidden_backward(z, up, down, grad, masked), expected)


@cache
def _try_kept(device: torch.device, dtype: torch.dtype, rank: int, out_rank: int, masked: bool) -> None:
    z, up, down, grad = _trial(device, dtype, rank, out_rank)
    plain = PlainSteps()
    hidden, grad_hidden = plain.hidden_backward(z, up, down, grad, True, masked)
    expected = {
        "output": plain.forward(z, up, down, True),
        "what is kept": torch.nn.functional.linear(z, up).relu(),
        "hidden features": hidden,
        "their gradient": grad_hidden,
    }

    def kept() -> list[Tensor]:
        room = z.new_empty((z.shape[0], up.shape[0]))
        out = ffn.forward_keeping(z, up, down.t().contiguous(), room)
        return [out, room, *ffn.kept_backward(room, down, grad, masked)]

    _hold(device, kept, expected)


def _trial(device: torch.device, dtype: torch.dtype, rank: int, out_rank: int) -> tuple[Tensor, ...]:
    """z, up, down and a gradient of small numbers: pre-activations are exact, with ties and zeros among them."""
    numbers = torch.Generator(device).manual_seed(0)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=numbers, device=device).to(dtype)

    z, up = drawn(-2, 2, _TRIAL_TOKENS, rank), torch.zeros(_TRIAL_FEATURES, rank, device=device, dtype=dtype)
    # few of a row are not zero: sums stay small; all columns are somebody's
    places = torch.randint(rank, (_TRIAL_FEATURES, 6), generator=numbers, device=device)
    up.scatter_(1, places, drawn(-1, 1, _TRIAL_FEATURES, 6) / 2)
    return z, up, drawn(-2, 2, _TRIAL_FEATURES, out_rank) / 8, drawn(-2, 2, _TRIAL_TOKENS, out_rank) / 8


def _hold(device: torch.device, computed: Callable[[], Sequence[Tensor]], expected: Mapping[str, Tensor]) -> None:
    for mine, (name, theirs) in zip(computed(), expected.items(), strict=True):
        error = float((mine.float() - theirs.float()).norm() / theirs.float().norm())
        if not error <= _TRIAL_TOLERANCE:
            raise UserError(
                f"backend 'hopper' cannot run here: compiled on this machine its kernels compute something else on "
                f"{device_name(device)} ({name}: error {error:.2g}); choose triton or reference"
            )
