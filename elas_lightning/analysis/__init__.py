"""From a sweep's result files to tables, plots and a report; needs neither torch nor lightning."""

from elas_lightning.analysis.load import SweepResults, load_sweep
from elas_lightning.analysis.plots import write_plots
from elas_lightning.analysis.report import write_report
from elas_lightning.analysis.tables import write_tables

__all__ = ["SweepResults", "load_sweep", "write_plots", "write_report", "write_tables"]
