"""The kinds of figures and their options: what a sweep's file is held to before its runs, and a notebook's call.

Apart from those who draw, since whoever reads a sweep's file should not have to wait for matplotlib.
"""

from typing import NamedTuple


class PlotOptions(NamedTuple):
    """What may be said of a kind of figure.

    Attributes:
        parameters: Options that name a searched parameter.
        others: The other ones; ``filter`` names some parameters by its keys.
        needed: Those that a sweep's file cannot leave out.
    """

    parameters: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.parameters, *self.others)

    @property
    def listed(self) -> str:
        """All of them, for messages."""
        return ", ".join(self.known) or "none"


PLOT_OPTIONS = {
    "metric_by": PlotOptions(("x", "series"), ("metric", "log_x", "baseline", "focus", "filter"), needed=("x",)),
    "bars": PlotOptions(("x", "group"), ("metric", "baseline", "focus", "filter"), needed=("x",)),
    "curves": PlotOptions(("series", "style"), ("x", "value", "filter")),
    "heatmap": PlotOptions(("x", "y"), ("metric", "baseline", "filter"), needed=("x", "y")),
    "lr_curve": PlotOptions(("x", "series"), ("metric", "baseline", "filter")),
    "parallel": PlotOptions((), ("metric", "filter")),
    "importance": PlotOptions(),
    "telemetry": PlotOptions((), ("value", "site", "x", "filter"), needed=("value",)),
    "pareto": PlotOptions(("series",), ("x", "metric", "filter")),
}
