"""The kinds of figures and their options: what a sweep's file is held to before its runs, and a notebook's call.

Apart from those who draw, since whoever reads a sweep's file should not have to wait for matplotlib.
"""

from collections.abc import Mapping
from typing import NamedTuple

from elas_lightning.trials_table import METRICS

# What the options may be whose values are names; a test holds them to those who draw.
CURVES = ("val_loss", "train_loss", "val_perplexity", "val_bits_per_byte", "tokens_per_second")
TIMES = ("tokens", "step", "seconds")
QUANTITIES = (
    "natural_zeros", "dropped_energy", "dropped_nonzeros", "mask_drift", "gradient_norm_ste", "gradient_norm_masked",
    "gradient_cosine", "gradient_bias", "effective_rank_up", "effective_rank_down", "effective_rank_hidden",
    "busiest_expert",
)  # fmt: skip


class PlotOptions(NamedTuple):
    """What may be said of a kind of figure.

    Attributes:
        parameters: Options that name a searched parameter.
        others: The other ones; ``filter`` names some parameters by its keys.
        needed: Those that a sweep's file cannot leave out.
        values: The names that an option may be, where it is one of a list.
    """

    parameters: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = {}

    @property
    def known(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.parameters, *self.others)

    @property
    def listed(self) -> str:
        """All of them, for messages."""
        return ", ".join(self.known) or "none"


_METRIC = {"metric": METRICS}
PLOT_OPTIONS = {
    "metric_by": PlotOptions(
        ("x", "series"), ("metric", "log_x", "baseline", "focus", "filter"), needed=("x",), values=_METRIC
    ),
    "bars": PlotOptions(("x", "group"), ("metric", "baseline", "focus", "filter"), needed=("x",), values=_METRIC),
    "differences": PlotOptions(("x",), ("baseline",), needed=("x",)),
    "curves": PlotOptions(("series", "style"), ("x", "value", "filter"), values={"x": TIMES, "value": CURVES}),
    "heatmap": PlotOptions(("x", "y"), ("metric", "baseline", "filter"), needed=("x", "y"), values=_METRIC),
    "lr_curve": PlotOptions(("x", "series"), ("metric", "baseline", "filter"), values=_METRIC),
    "parallel": PlotOptions((), ("metric", "filter"), values=_METRIC),
    "importance": PlotOptions(),
    "telemetry": PlotOptions(
        (), ("value", "site", "x", "filter"), needed=("value",), values={"value": QUANTITIES, "x": TIMES}
    ),
    "pareto": PlotOptions(("series",), ("x", "metric", "filter"), values={"x": METRICS, **_METRIC}),
}
