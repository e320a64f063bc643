"""Head and cross entropy of the next token as one step, in sums, so that a mean can be formed over any batches.

The logits of a batch are by far its largest tensor: with 32,000 tokens and a width of 512 they are 62 times the
features they come from. Here they exist for one chunk of positions at a time, in training and in evaluation.

Shape suffixes: B batch, T time, V vocabulary, C model width, N = B·T positions, n positions of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elas_lightning.ops.backend import autocast_dtype

IGNORE = -100

# Each chunk reads and writes the whole gradient of the head once. On a CPU 32 MiB of float32 logits (262 positions
# of 32,000) hide that; a GPU multiplies that much faster than it moves memory that it wants 256 MiB.
_CHUNK_ENTRIES = {"cpu": 2**23}
_CHUNK_ENTRIES_ELSEWHERE = 2**26


def chunk_rows(vocabulary: int, device: str) -> int:
    """Positions a chunk may hold: at least one."""
    return max(1, _CHUNK_ENTRIES.get(device, _CHUNK_ENTRIES_ELSEWHERE) // vocabulary)


def _sum_nll(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum and its gradients with respect to hidden features and weight, which are empty if not asked for."""
    real_N1 = (labels_N != IGNORE)[:, None]
    target_N1 = labels_N[:, None].where(real_N1, 0)
    head_VC = weight_VC.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # float32 whatever the products are made in: a bfloat16 sum over chunks would lose the later ones
    grad_VC = torch.zeros_like(weight_VC, dtype=wide) if gradients else weight_VC.new_empty(0)
    nll: list[Tensor] = []
    grad: list[Tensor] = []
    rows = chunk_rows(weight_VC.shape[0], hidden_NC.device.type)
    parts = (tensor.split(rows) for tensor in (hidden_NC, target_N1, real_N1))
    for hidden_nC, target_n1, real_n1 in zip(*parts, strict=True):
        x_nC = hidden_nC.to(dtype)
        log_p_nV = F.linear(x_nC, head_VC).log_softmax(-1, dtype=wide)
        nll.append(-log_p_nV.gather(1, target_n1).where(real_n1, 0))
        if gradients:
            one_n1 = real_n1.to(wide)
            # softmax minus one-hot: the chunk's own memory is used again, nobody else sees it
            delta_nV = log_p_nV.exp_().mul_(one_n1).scatter_add_(1, target_n1, -one_n1).to(dtype)
            grad.append((delta_nV @ head_VC).to(hidden_NC.dtype))
            if dtype == wide:
                grad_VC.addmm_(delta_nV.T, x_nC)
            else:
                grad_VC += delta_nV.T @ x_nC
    grad_NC = torch.cat(grad) if gradients else hidden_NC.new_empty(0)
    return torch.cat(nll).sum(), grad_NC, grad_VC.to(weight_VC.dtype)


# Makes the gradients while a chunk's logits exist, so that backward needs neither them nor a product more, as in
# Liger-Kernel (arXiv 2410.10989); possible since a sum's gradient is known but for a factor. An operator and no
# autograd.Function, since a compiler that sees inside is free to move the products to backward and to keep the
# chunks for them, which it did under autocast.
_linear_cross_entropy = torch.library.custom_op("elas::linear_cross_entropy", _sum_nll, mutates_args=())


@_linear_cross_entropy.register_fake
def _(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden_NC.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    if not gradients:
        return total, hidden_NC.new_empty(0), weight_VC.new_empty(0)
    return total, hidden_NC.new_empty(hidden_NC.shape), torch.empty_like(weight_VC)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    # else backward would be handed zeros of the head's size for the gradients' own gradients
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad: Tensor | None, *second_order: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(tensor is not None for tensor in second_order):
        raise RuntimeError("the fused head and loss has first derivatives only")
    if grad is None:
        return (None,) * 5
    grad_NC, grad_VC = ctx.saved_tensors
    return grad * grad_NC, grad * grad_VC, None, None, None


_linear_cross_entropy.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def linear_next_token_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the negative log-likelihood over all real targets, without ever holding the logits of a batch.

    Memory beyond the arguments: two to four times one chunk of logits (2²³ entries on a CPU, 2²⁶ elsewhere) while it
    runs; until backward, the gradients of ``hidden`` and ``weight``, and nothing of V × B·T entries. Without
    gradients to make (``no_grad``, evaluation) only the chunk.

    Args:
        hidden: ``(B, T, C)``: what the head reads.
        weight: ``(V, C)``: the head. The product is made in autocast's dtype where that is on; log-probabilities
            and the sum of the weight's gradient over chunks are in float32 (float64 for float64).
        labels: ``(B, T)`` int64, already aligned: ``labels[b, t]`` is the target of position t; -100 is none.

    Returns:
        The sum in nats (scalar, float32; float64 for float64) and the number of targets (int64 scalar). Both stay
        on the device.

    Raises:
        RuntimeError: A label that is neither -100 nor in the vocabulary, on a CPU.
    """
    # asked here: where a compiler has taken autocast's place, the operator itself could not see it
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    dtype = autocast_dtype(hidden) or hidden.dtype
    total, *_ = _linear_cross_entropy(hidden.flatten(0, 1), weight, labels.flatten(), dtype, gradients)
    return total, (labels != IGNORE).sum()
