"""How long training waits for its data, and one warning where that is what limits it."""

import logging

BOTTLENECK_SHARE = 0.1
# Of training, not counting the first window, in which workers start and fill their queues.
JUDGED_AFTER_SECONDS = 10.0

_log = logging.getLogger(__name__)


class DataWait:
    """Adds up the waiting, window by window.

    Attributes:
        seconds: waited so far, mean over ranks.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._first = True
        self._judged = [0.0, 0.0]  # waited, elapsed
        self._warned = False

    def add(self, waited: float, elapsed: float) -> float:
        """Take in a window and return its share of waiting; warn, once, where the whole is too much.

        Args:
            waited: seconds, mean over ranks.
            elapsed: seconds of training in the window.
        """
        self.seconds += waited
        if not self._first:
            self._judged = [self._judged[0] + waited, self._judged[1] + elapsed]
        self._first = False
        waited_since, since = self._judged
        if not self._warned and since >= JUDGED_AFTER_SECONDS and waited_since > BOTTLENECK_SHARE * since:
            self._warned = True
            _log.warning(
                "training waits for its data %.0f %% of the time: give it more data.num_workers, or tokenize once with "
                "elas data prepare and train with data.source=tokens",
                100 * waited_since / since,
            )
        return waited / elapsed
