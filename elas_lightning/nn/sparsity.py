"""The sites at which a decoder layer can be made sparse.

Shape suffixes: N features, a multiple of what the pattern asks; "..." batch and time.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.sparsity_config import Placement
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
    numbers, so that the loss of a text depends neither on when it is measured nor on what else is in its batch. A text
    that is read through a cache draws them by each token's place, which is why a site knows its ``start``.
    """

    key: Tensor

    def __init__(self, site: Placement, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.site: Placement = site
        self.sparsity = sparsity = config.sparsity
        self.backend = sparsity.kernel_backend(config.backend)
        self.gradient: Gradient = sparsity.gradient
        self.placed = layer in config.sparse_layers and site in sparsity.placement
        self.active = self.placed
        self.stochastic = self.placed and sparsity.stochastic
        self.number = 0
        self.start = 0
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
        if self.training and self.stochastic:
            return self._sparsify(x, self.key, same_rows=False)
        return self.evaluated(x)

    def evaluated(self, x: Tensor) -> Tensor:
        """What the configured step makes of features in evaluation, wherever the site, placed and on or not.

        Args:
            x: ``(..., N)``.
        """
        return self._sparsify(x, self.number if self.sparsity.stochastic else None, same_rows=True)

    def _sparsify(self, x: Tensor, key: Tensor | int | None, same_rows: bool) -> Tensor:
        return sparsify(
            x,
            pattern=self.sparsity.pattern,
            method=self.sparsity.method,
            gradient=self.gradient,
            key=key,
            same_rows=same_rows,
            start=self.start if same_rows else 0,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Name, placement and state, for ``print(model)``."""
        return f"{self.site}, placed={self.placed}, active={self.active}"


def sites(model: nn.Module) -> list[SparsitySite]:
    """Every site of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, SparsitySite)]
