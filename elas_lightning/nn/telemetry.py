"""What a site's sparsity step finds and drops, measured on a batch; how its choice drifts from look to look.

The step is the one that the model is configured with, pattern and method, as evaluation applies it; a dense model's is
2:4 by magnitude.

Shape suffixes: B batch, T time, E experts, C model width, F hidden features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from elas_lightning.nn.experts import MixtureOfExperts
from elas_lightning.nn.ffn import FFN, ffns
from elas_lightning.nn.llama import Llama
from elas_lightning.nn.sparsity import SparsitySite
from elas_lightning.nn.telemetry_gradients import gradient_statistics
from elas_lightning.nn.telemetry_spectrum import effective_rank, weight_ranks

# Enough for a share and a spectrum; the choice of all tokens of a large model would be gigabytes.
_TOKENS = 256

# By layer and site: which features of the first tokens were kept at the last look.
Selections = dict[tuple[int, str], Tensor]


class _Tally:
    """Sums over one site of one layer; a bottleneck is met once for each matrix of its FFN."""

    def __init__(self) -> None:
        self.entries = self.zeros = self.dropped = 0
        self.energy = self.dropped_energy = 0.0
        self.kept: list[Tensor] = []

    def add(self, x: Tensor, site: SparsitySite) -> None:
        # A dense model's width need not divide by 4 (5461 at 1B); an incomplete last group has no pattern.
        x = x[..., : x.shape[-1] // site.sparsity.width_multiple * site.sparsity.width_multiple].float()
        # a zero may be among the kept ones for want of others: that is no choice
        kept = site.evaluated(x) != 0
        rest = x.masked_fill(kept, 0)  # and no difference: a method may change what it keeps
        self.kept.append(kept.flatten(0, -2)[:_TOKENS].cpu())
        self.entries += x.numel()
        self.zeros += int((x == 0).sum())
        self.dropped += int((rest != 0).sum())
        self.energy += float(x.square().sum())
        self.dropped_energy += float(rest.square().sum())

    def drift(self, at: tuple[int, str], selections: Selections) -> float | None:
        """The share of the last look's choice that is no longer chosen, None at the first; leaves the new one."""
        last, now = selections.get(at), torch.cat(self.kept, -1)
        selections[at] = now
        if last is None or last.shape != now.shape or not bool(last.any()):
            return None
        return float((last & ~now).sum() / last.sum())

    def row(self) -> dict[str, float]:
        return {
            "natural_zeros": self.zeros / max(self.entries, 1),
            "dropped_energy": self.dropped_energy / self.energy if self.energy else 0.0,
            "dropped_nonzeros": self.dropped / max(self.entries - self.zeros, 1),
        }


@torch.no_grad()
def sparsity_statistics(model: Llama, input_ids: Tensor, selections: Selections | None = None) -> list[dict[str, Any]]:
    """Compare each site's features with what its step keeps of them, in one forward pass of the model as it is now.

    The hidden site of every FFN is reported on any model, dense ones too: what the step would drop there. Other
    sites are reported where they are placed, whether or not they are switched on at present.

    A deterministic method (``magnitude``, ``soft_threshold``, ``first``) has one choice, which is reported. Of a
    stochastic one (``mvue``, ``random``) the draw is that of evaluation, whose random numbers are always the same:
    shares are of this one draw and no expectation, and drift is what features do to it, not what chance does.

    Args:
        model: The plain module, not a compiled wrapper.
        input_ids: ``(B, T)`` int64.
        selections: The choice at the last look at the same batch, which is replaced by the present one; empty
            at the first look. None: drift is not asked for.

    Returns:
        One row a layer and site: ``layer``, ``site``, ``natural_zeros`` (share of the features that are
        exactly zero before the step), ``dropped_energy`` (their share of the sum of squares, of the features that
        the step makes zero), ``dropped_nonzeros`` (share of the non-zero features that it makes zero),
        ``mask_drift`` (share of the non-zero features kept at the last look that are no longer kept, in the first
        256 tokens; None at the first look, and absent inside experts, to which other tokens come at each look), all in
        0 to 1; and at the hidden site ``effective_rank_hidden`` of the features before the step, in the same tokens (of
        experts the mean), and where there are experts ``busiest_expert``: the tokens of the one with most, as a
        multiple of an even share.
    """
    tallies, ffn_inputs, loads = _watched_forward(model, input_ids)
    # Hidden features exist only inside an op, so they are computed again, now that no hook counts twice.
    ranks: dict[int, list[float]] = {}
    for layer, ffn, x in ffn_inputs:
        if x.numel() == 0:  # an expert that no token was sent to
            continue
        hidden = ffn.hidden(x)
        tallies[layer, "ffn_hidden"].add(hidden, ffn.hidden_site)
        spectrum = torch.linalg.svdvals(hidden.flatten(0, -2)[:_TOKENS].float())
        ranks.setdefault(layer, []).append(effective_rank(spectrum))
    rows = []
    for at in sorted(tallies):
        layer, site = at
        row: dict[str, Any] = {"layer": layer, "site": site, **tallies[at].row()}
        if selections is not None and not (layer in loads and site.startswith("ffn")):
            row["mask_drift"] = tallies[at].drift(at, selections)
        if site == "ffn_hidden":
            row["effective_rank_hidden"] = fmean(ranks[layer])
            if layer in loads:
                row["busiest_expert"] = loads[layer]
        rows.append(row)
    return rows


def _watched_forward(
    model: Llama, input_ids: Tensor
) -> tuple[dict[tuple[int, str], _Tally], list[tuple[int, FFN, Tensor]], dict[int, float]]:
    """One forward pass: tallies of the placed sites other than the hidden ones, what each FFN read, by layer the load
    of its busiest expert."""
    tallies: dict[tuple[int, str], _Tally] = defaultdict(_Tally)
    ffn_inputs: list[tuple[int, FFN, Tensor]] = []
    loads: dict[int, float] = {}

    def tally_site(layer: int, module: SparsitySite, inputs: tuple[Tensor, ...]) -> None:
        tallies[layer, module.site].add(inputs[0], module)

    def keep_ffn_input(layer: int, module: FFN, inputs: tuple[Tensor, ...]) -> None:
        ffn_inputs.append((layer, module, inputs[0]))

    def weigh_experts(layer: int, module: MixtureOfExperts, inputs: tuple[Tensor, ...]) -> None:
        tokens_E = module.route(inputs[0].flatten(0, -2)).tokens_E
        loads[layer] = float(tokens_E.max() * len(tokens_E) / tokens_E.sum())

    with ExitStack() as hooks:
        for layer, block in enumerate(model.layers):
            for module in block.modules():
                if isinstance(module, MixtureOfExperts):
                    hook = partial(weigh_experts, layer)
                elif isinstance(module, FFN):
                    hook = partial(keep_ffn_input, layer)
                elif isinstance(module, SparsitySite) and module.placed and module.site != "ffn_hidden":
                    hook = partial(tally_site, layer)
                else:
                    continue
                hooks.callback(module.register_forward_pre_hook(hook).remove)
        model.hidden(input_ids)
    return tallies, ffn_inputs, loads


def layer_statistics(model: Llama, input_ids: Tensor, labels: Tensor, selections: Selections) -> list[dict[str, Any]]:
    """All telemetry of the model as it is now: sparsity, its gradients, effective ranks.

    Args:
        model: The plain module, not a compiled wrapper.
        input_ids: ``(B, T)`` int64.
        labels: ``(B, T)`` int64, -100 where there is no target.
        selections: As ``sparsity_statistics``.

    Returns:
        The rows of ``sparsity_statistics``; those of the hidden site, of which each layer has one, hold the
        layer's ``gradient_statistics`` and ``weight_ranks``, too.
    """
    with _in_plain_pytorch(model):
        rows = sparsity_statistics(model, input_ids, selections)
        gradients = gradient_statistics(model, input_ids, labels)
    hidden = {row["layer"]: row for row in rows if row["site"] == "ffn_hidden"}
    for found in (*gradients, *weight_ranks(model)):
        hidden[found["layer"]].update(found)
    return rows


@contextmanager
def _in_plain_pytorch(model: Llama) -> Iterator[None]:
    """Let the FFNs compute on ``reference``.

    Telemetry runs without autocast, and a backend of the sparse tensor cores refuses the float32 that it then gets.
    """
    networks = ffns(model)
    own = [ffn.config for ffn in networks]
    for ffn in networks:
        ffn.config = replace(ffn.config, backend="reference")
    try:
        yield
    finally:
        for ffn, config in zip(networks, own, strict=True):
            ffn.config = config
