"""The sites at which a decoder layer can be made 2:4 sparse.

Shape suffixes: N features, a multiple of 4; "..." batch and time.
"""

from __future__ import annotations

from torch import Tensor, nn

from elas_lightning.nn.sparsity_config import Placement, SparsityConfig
from elas_lightning.ops import sparsify_24
from elas_lightning.ops.sparsify import Gradient


class SparsitySite(nn.Module):
    """One site: passes features through, or makes them 2:4 where it is placed and switched on.

    Every possible site exists in every layer, so that telemetry finds them all and a layer's code does not
    depend on the placement. ``active`` is plain Python state: it belongs to the training schedule, which sets
    it again after a resume, and not to the weights.
    """

    def __init__(self, site: Placement, sparsity: SparsityConfig, layer_is_sparse: bool) -> None:
        """Make a site, switched on if it is placed.

        Args:
            site: Its name.
            sparsity: The model's sparsity.
            layer_is_sparse: Whether the site's layer is among the sparse ones.
        """
        super().__init__()
        self.site: Placement = site
        self.gradient: Gradient = sparsity.gradient
        self.placed = layer_is_sparse and site in sparsity.placement
        self.active = self.placed

    def set_active(self, active: bool) -> None:
        """Switch the 2:4 step on or off; a site that is not placed stays off."""
        self.active = active and self.placed

    def forward(self, x: Tensor) -> Tensor:
        """Apply the site.

        Args:
            x: ``(..., N)``.

        Returns:
            ``x`` itself while inactive, else ``sparsify_24(x)``.
        """
        return sparsify_24(x, gradient=self.gradient) if self.active else x

    def extra_repr(self) -> str:
        """Name, placement and state, for ``print(model)``."""
        return f"{self.site}, placed={self.placed}, active={self.active}"
