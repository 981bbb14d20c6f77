"""What the worker tells the scheduler of a step, and the scheduler the engine's front: rows that say something.

A row is worth telling in full when it is a prompt's last token, or when a guard's reading is anything but OUTSIDE. Of
any other row only the number of neurons moved is told, where there are any; else silence says that every guard read
OUTSIDE.
"""

from typing import Any, NamedTuple

EVENTS = "skillguard_events"
"""Attribute of vLLM's ModelRunnerOutput: the step's `StepReport`. Its absence says that nothing was judged."""
STOP_REASON = "skillguard"
"""vLLM's `stop_reason` of an answer whose token was withheld."""
PARAMS_KEY = "skillguard"
"""Under which an RowReport travels in `kv_transfer_params`."""
MOVED_KEY = "skillguard_moved"
"""Under which the neurons moved at a row without an RowReport do."""
SHADOW = "skillguard_shadow"
"""Key of `SamplingParams.extra_args`: names of the guards that only watch this request."""


class RowReport(NamedTuple):
    """One row. `generated`: tokens drawn before it. `cells`: as `Cells` orders them. `withheld`: no token was drawn."""

    generated: int
    cells: tuple[float, ...]
    withheld: bool

    def dump(self) -> dict[str, Any]:
        """For vLLM's message format."""
        return {PARAMS_KEY: [self.generated, list(self.cells), self.withheld]}


class StepReport(NamedTuple):
    """One step: the requests whose rows were judged, and what was worth telling of them."""

    judged: frozenset[str]
    events: dict[str, RowReport]
    moved: dict[str, int]
    """Neurons moved at rows that are not among the events; rows without any are left out."""

    def params(self, request_id: str) -> dict[str, Any] | None:
        """What travels with one request's output, for vLLM's message format."""
        if (event := self.events.get(request_id)) is not None:
            return event.dump()
        moved = self.moved.get(request_id)
        return None if moved is None else {MOVED_KEY: moved}


def load_report(params: Any) -> RowReport | None:
    """The event in an output's `kv_transfer_params`, if it holds one."""
    if not isinstance(params, dict) or PARAMS_KEY not in params:
        return None
    generated, cells, withheld = params[PARAMS_KEY]
    return RowReport(int(generated), tuple(float(cell) for cell in cells), bool(withheld))


def load_moved(params: Any) -> int:
    """Neurons moved at an output's row, where it has no event."""
    return int(params.get(MOVED_KEY, 0)) if isinstance(params, dict) else 0
