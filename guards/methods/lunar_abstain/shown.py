"""How a calibration of a change's gate is shown: as one over spans."""

from guards.methods.spans.shown import plots, report, table

__all__ = ["plots", "report", "table"]
