"""Loss spikes: where the training loss jumps out of what it did shortly before."""

from collections.abc import Sequence
from statistics import median

WINDOW = 20
LEAST = 5
DEVIATIONS = 6.0
SMALLEST = 0.01


def is_spike(loss: float, earlier: Sequence[float]) -> bool:
    """Whether a loss lies above the last 20 by more than six robust standard deviations.

    The centre is their median and the deviation 1.4826 times their median absolute deviation, which is the standard
    deviation of normal noise and which one earlier spike does not move; at least a hundredth of a nat, since a
    quiet stretch makes any noise look large. What falls is no spike. With fewer than five losses before it none is.

    Args:
        loss: The loss of one window of the curve, in nats a token.
        earlier: Those of the windows before it, oldest first.
    """
    last = earlier[-WINDOW:]
    if len(last) < LEAST:
        return False
    centre = median(last)
    deviation = 1.4826 * median(abs(value - centre) for value in last)
    return loss > centre + DEVIATIONS * max(deviation, SMALLEST)


class Spikes:
    """Counts the spikes of a curve, of which windows in a row are one.

    Attributes:
        count: Spikes so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._losses: list[float] = []
        self._spiking = False

    def add(self, loss: float) -> bool:
        """Take in the loss of the next window; whether it is a spike."""
        spike = is_spike(loss, self._losses)
        self._losses = [*self._losses, loss][-WINDOW:]
        self.count += spike and not self._spiking
        self._spiking = spike
        return spike
