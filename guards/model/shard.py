"""Which slice of a layer a process holds: tensor parallelism splits its width evenly over ranks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Slice `index` of `count`. A guard bound to one reads, or changes, that slice only."""

    index: int = 0
    count: int = 1

    def columns(self, width: int) -> slice:
        """The slice of a vector of `width` entries."""
        assert width % self.count == 0, f"width {width} does not divide by {self.count} ranks"
        size = width // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def holds(self, neurons_S: Tensor, width: int) -> Tensor:
        """Which neurons of a layer of `width` lie in the slice, bool [S]."""
        columns = self.columns(width)
        here_S: Tensor = (neurons_S >= columns.start) & (neurons_S < columns.stop)
        return here_S


WHOLE = Shard()
