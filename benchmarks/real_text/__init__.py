"""Former names of what `benchmarks.parity` takes from `benchmarks.prompts`; goes once it takes it from there."""

from benchmarks.prompts import splits

__all__ = ["splits"]
