"""The sites at which a decoder layer can be made sparse.

Shape suffixes: N features, a multiple of what the pattern asks; "..." batch and time.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from elas_lightning.nn.sparsity_config import Placement, SparsityConfig
from elas_lightning.ops import sparsify
from elas_lightning.ops.sparsify import Gradient


class SparsitySite(nn.Module):
    """One site: passes features through, or makes them sparse where it is placed and switched on.

    Every possible site exists in every layer, so that telemetry finds them all and a layer's code does not
    depend on the placement. ``active`` is plain Python state: it belongs to the training schedule, which sets
    it again after a resume, and not to the weights. ``number`` is the site's place among the model's, which gives it
    random numbers of its own.

    A stochastic method draws from the site's ``key`` while training. In evaluation it stays the method it is, so that
    what is measured is a model as sparse as the one trained; but its key is then a constant and rows share their random
    numbers, so that the loss of a text depends neither on when it is measured nor on what else is in its batch.
    """

    key: Tensor

    def __init__(self, site: Placement, sparsity: SparsityConfig, layer_is_sparse: bool) -> None:
        """Make a site, switched on if it is placed.

        Args:
            site: Its name.
            sparsity: The model's sparsity.
            layer_is_sparse: Whether the site's layer is among the sparse ones.
        """
        super().__init__()
        self.site: Placement = site
        self.sparsity = sparsity
        self.gradient: Gradient = sparsity.gradient
        self.placed = layer_is_sparse and site in sparsity.placement
        self.active = self.placed
        self.stochastic = self.placed and sparsity.stochastic
        self.number = 0
        if self.stochastic:
            # A tensor, so that a compiled model is not compiled again for each value; never part of the weights. On
            # the CPU until the model moves: one that is built on the meta device gets weights from a file, but no key.
            self.register_buffer("key", torch.zeros((), dtype=torch.int64, device="cpu"), persistent=False)

    def set_active(self, active: bool) -> None:
        """Switch the sparsity step on or off; a site that is not placed stays off."""
        self.active = active and self.placed

    def set_key(self, *counters: int) -> None:
        """Choose the random numbers of the training steps to come; nothing for a method that draws none.

        Args:
            counters: Whatever tells one draw from another; different ones give unrelated numbers.
        """
        if self.stochastic:
            digest = hashlib.blake2s(repr((self.number, *counters)).encode(), digest_size=4).digest()
            self.key.fill_(int.from_bytes(digest, "little"))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the site.

        Args:
            x: ``(..., N)``.

        Returns:
            ``x`` itself while inactive, else what ``sparsify`` makes of it.
        """
        if not self.active:
            return x
        key: Tensor | int | None = None
        if self.stochastic:
            key = self.key if self.training else self.number
        return sparsify(
            x,
            pattern=self.sparsity.pattern,
            method=self.sparsity.method,
            gradient=self.gradient,
            key=key,
            same_rows=not self.training,
        )

    def extra_repr(self) -> str:
        """Name, placement and state, for ``print(model)``."""
        return f"{self.site}, placed={self.placed}, active={self.active}"
