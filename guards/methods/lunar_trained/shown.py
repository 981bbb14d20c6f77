"""How a training of LUNAR is shown: as any."""

from guards.methods.rmu.shown import plots, report, table

__all__ = ["plots", "report", "table"]
