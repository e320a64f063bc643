"""The figures of a sweep: one function a kind, each giving a figure and a sentence about its data."""

from elas_lightning.analysis.plots.write import KINDS, write_plots

__all__ = ["KINDS", "write_plots"]
