"""What the straight-through gradient of the sparsity step does to training, beside the exact one.

Shape suffixes: B batch, T time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elas_lightning.nn.ffn import ffns
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.loss import linear_next_token_loss
from elas_lightning.nn.sparsity import sites


def _up_gradients(model: Llama, input_ids: Tensor, labels: Tensor, gradient: str) -> list[Tensor]:
    """Of the mean loss, with respect to all that makes the hidden features of each layer, flat, by layer."""
    every = sites(model)
    before = [site.gradient for site in every]
    by_layer = [
        [
            parameter
            for ffn in ffns(block)
            for name, parameter in ffn.named_parameters()
            if parameter.requires_grad and not name.startswith("down_proj")
        ]
        for block in model.layers
    ]
    try:
        for site in every:
            site.gradient = gradient  # type: ignore[assignment]
        nll, tokens = linear_next_token_loss(model.hidden(input_ids), model.lm_head.weight, labels)
        # grad and no backward: nothing is added to what training may have accumulated
        found = iter(torch.autograd.grad(nll / tokens.clamp(min=1), [p for layer in by_layer for p in layer]))
    finally:
        for site, own in zip(every, before, strict=True):
            site.gradient = own
    return [torch.cat([next(found).flatten().float() for _ in layer]) for layer in by_layer]


def gradient_statistics(model: Llama, input_ids: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Compare the two gradients of the sparsity step on one batch, layer by layer.

    Both are those of the real loss with the forward pass as it is now; all sites that are on pass gradient either
    straight through or masked, with their choice held fixed. The masked one is exact but for ``mvue``, whose draw
    depends on the features (``elas_lightning.ops.sparsify``); a feature-wise backward stays in both. Compared is
    what reaches a layer's up matrix (and gate), of all experts together. Leaves no gradient behind and draws no random
    numbers.

    Args:
        model: The plain module, not a compiled wrapper.
        input_ids: ``(B, T)`` int64.
        labels: ``(B, T)`` int64, -100 where there is no target.

    Returns:
        A row a layer: ``layer``, ``gradient_norm_ste``, ``gradient_norm_masked``, ``gradient_cosine`` between the
        two, and ``gradient_bias``: the norm of their difference over that of the exact gradient. Empty while no
        site is on, when there is but one gradient.
    """
    if not model.sparsity_active:
        return []
    # Lightning validates under no_grad or inference_mode, whose tensors backward refuses
    with torch.inference_mode(False), torch.enable_grad():
        input_ids, labels = input_ids.clone(), labels.clone()
        straight = _up_gradients(model, input_ids, labels, "ste")
        exact = _up_gradients(model, input_ids, labels, "masked")
    rows = []
    for layer, (ste, masked) in enumerate(zip(straight, exact, strict=True)):
        norms = [float(ste.norm()), float(masked.norm())]
        both = norms[0] * norms[1]
        rows.append(
            {
                "layer": layer,
                "gradient_norm_ste": norms[0],
                "gradient_norm_masked": norms[1],
                "gradient_cosine": float(ste @ masked) / both if both else None,
                "gradient_bias": float((ste - masked).norm()) / norms[1] if norms[1] else None,
            }
        )
    return rows
