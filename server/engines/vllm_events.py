"""What the worker tells the scheduler of a step, and the scheduler the engine's front: rows that say something.

A row is worth telling when it is a prompt's last token, when a guard's reading is anything but OUTSIDE, or when an
intervention moved a neuron. Silence about any other row says that every guard read OUTSIDE there.
"""

from typing import Any, NamedTuple

EVENTS = "skillguard_events"
"""Attribute of vLLM's ModelRunnerOutput: the step's `Told`. Its absence says that nothing was judged."""
STOP_REASON = "skillguard"
"""vLLM's `stop_reason` of an answer whose token was withheld."""
PARAMS_KEY = "skillguard"
"""Under which an Event travels in `kv_transfer_params`."""
SHADOW = "skillguard_shadow"
"""Key of `SamplingParams.extra_args`: names of the guards that only watch this request."""


class Event(NamedTuple):
    """One row. `generated`: tokens drawn before it. `cells`: as `Cells` orders them. `withheld`: no token was drawn."""

    generated: int
    cells: tuple[float, ...]
    withheld: bool

    def dump(self) -> dict[str, Any]:
        """For vLLM's message format."""
        return {PARAMS_KEY: [self.generated, list(self.cells), self.withheld]}


class Told(NamedTuple):
    """One step: the requests whose rows were judged, and what was worth telling of them."""

    judged: frozenset[str]
    events: dict[str, Event]


def load_event(params: Any) -> Event | None:
    """The event in an output's `kv_transfer_params`, if it holds one."""
    if not isinstance(params, dict) or PARAMS_KEY not in params:
        return None
    generated, cells, withheld = params[PARAMS_KEY]
    return Event(int(generated), tuple(float(cell) for cell in cells), bool(withheld))
