"""What 2:4 finds and what it drops, measured on a batch.

Shape suffixes: B batch, T time, C model width.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elas_lightning.nn.ffn import FFN
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.ops import sparsify_24


class _Tally:
    """Sums over one site of one layer; a bottleneck is met once for each matrix of its FFN."""

    def __init__(self) -> None:
        self.entries = self.zeros = self.dropped = 0
        self.energy = self.dropped_energy = 0.0

    def add(self, x: Tensor) -> None:
        # A dense model's width need not divide by 4 (5461 at 1B); an incomplete last group has no pattern.
        x = x[..., : x.shape[-1] // 4 * 4].float()
        rest = x - sparsify_24(x)
        self.entries += x.numel()
        self.zeros += int((x == 0).sum())
        self.dropped += int((rest != 0).sum())
        self.energy += float(x.square().sum())
        self.dropped_energy += float(rest.square().sum())

    def row(self) -> dict[str, float]:
        return {
            "natural_zeros": self.zeros / max(self.entries, 1),
            "dropped_energy": self.dropped_energy / self.energy if self.energy else 0.0,
            "dropped_nonzeros": self.dropped / max(self.entries - self.zeros, 1),
        }


@torch.no_grad()
def sparsity_statistics(model: Llama, input_ids: Tensor) -> list[dict[str, Any]]:
    """Compare each site's features with their 2:4 selection, in one forward pass of the model as it is now.

    The hidden site of every FFN is reported on any model, dense ones too: what 2:4 would drop there. Other
    sites are reported where they are placed, whether or not they are switched on at present.

    Args:
        model: The plain module, not a compiled wrapper.
        input_ids: ``(B, T)`` int64.

    Returns:
        One row a layer and site: ``layer``, ``site``, ``natural_zeros`` (share of the features that are
        exactly zero before the 2:4 step), ``dropped_energy`` (share of the sum of squares that the step
        removes) and ``dropped_nonzeros`` (share of the non-zero features that it removes). All in 0 to 1.
    """
    tallies: dict[tuple[int, str], _Tally] = {}
    ffn_inputs: list[tuple[int, FFN, Tensor]] = []

    def tally_site(layer: int, module: SparsitySite, inputs: tuple[Tensor, ...]) -> None:
        tallies.setdefault((layer, module.site), _Tally()).add(inputs[0])

    def keep_ffn_input(layer: int, module: FFN, inputs: tuple[Tensor, ...]) -> None:
        ffn_inputs.append((layer, module, inputs[0]))

    with ExitStack() as hooks:
        for layer, block in enumerate(model.layers):
            for module in block.modules():
                if isinstance(module, FFN):
                    hook = partial(keep_ffn_input, layer)
                elif isinstance(module, SparsitySite) and module.placed and module.site != "ffn_hidden":
                    hook = partial(tally_site, layer)
                else:
                    continue
                hooks.callback(module.register_forward_pre_hook(hook).remove)
        model.hidden(input_ids)

    # Hidden features exist only inside an op, so they are computed again, now that no hook counts twice.
    for layer, ffn, x_BTC in ffn_inputs:
        tallies[layer, "ffn_hidden"] = _Tally()
        tallies[layer, "ffn_hidden"].add(ffn.hidden(x_BTC))
    return [{"layer": layer, "site": site, **tallies[layer, site].row()} for layer, site in sorted(tallies)]
