"""Keys and values of the tokens that a decoder has read, so that the next token costs one position and not all.

Every row of a batch is equally long: prompts of unequal length are read one at a time. Padding them would put a mask
and a position for each row into the one attention of this project, and a padded row would no longer add up in the
order of an unpadded one.

Shape suffixes: B batch, H heads, T new positions, S positions so far, new ones included, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """What one attention layer remembers, in memory that grows twofold: a limit that is not reached costs nothing.

    Args:
        capacity: Positions, of prompt and continuation together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def append(self, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Remember new positions.

        Args:
            k_BHTD: Keys, already rotated to their positions.
            v_BHTD: Values.

        Returns:
            Keys and values of all positions so far, ``(B, H, S, D)`` each.

        Raises:
            ValueError: The capacity is exceeded.
        """
        batch, heads, new, size = k_BHTD.shape
        start, self.length = self.length, self.length + new
        if self.length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions and would need {self.length}")
        if self._kept is None or self._kept[0].shape[2] < self.length:
            # only now are batch, dtype (autocast's, perhaps) and device known
            shape = (batch, heads, min(2 * self.length, self.capacity), size)
            grown = k_BHTD.new_empty(shape), v_BHTD.new_empty(shape)
            for room, kept in zip(grown, self._kept or (), strict=False):
                room[:, :, :start] = kept[:, :, :start]
            self._kept = grown
        keys, values = self._kept
        keys[:, :, start : self.length] = k_BHTD
        values[:, :, start : self.length] = v_BHTD
        return keys[:, :, : self.length], values[:, :, : self.length]


class Cache:
    """What a whole decoder remembers: one :class:`LayerCache` of that capacity a layer."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Positions read so far: where the next token stands."""
        return self.layers[0].length


def visible(new: int, total: int, device: torch.device) -> Tensor | None:
    """Which positions each new one may attend to.

    Args:
        new: T.
        total: S.
        device: Where to make the mask.

    Returns:
        ``(T, S)`` boolean: itself and everything before it; None for a single position, which sees all.
    """
    if new == 1:
        return None
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
