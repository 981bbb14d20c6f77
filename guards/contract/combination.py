"""Which guards may be served together: whose interventions change what another guard reads.

A forward pass goes through blocks, and through the sites of a block, in one order. What an intervention changes at a
place reaches every place after it, at the same token and, by attention, at later ones; no place before it. At its own
place it reaches every detector, and the interventions that are given after it, since these act in that order.

A guard that is reached reads other vectors than it was calibrated on. Whether it still holds does not follow from
places: its canaries tell, under every set of the interventions that reach it, because a request may have any of them
off.
"""

from collections.abc import Mapping
from math import inf

from guards.contract.guard import Bound
from guards.core.beside import Beside
from guards.errors import AttachError
from guards.model.sites import SITES, STEPS, Place

MOST_REACHING = 4
"""Interventions that may change what one guard reads. Its canaries go through the engine once for each set of them:
16 times at most.
"""

Moment = tuple[int, int, float]
"""When something is read or written in a pass: the layer, the step within it, and the turn at that place."""


def beside(guards: Mapping[str, Bound]) -> dict[str, Beside]:
    """What the others are to each guard. Raises AttachError where more than MOST_REACHING change what one reads."""
    turns = {name: turn for turn, name in enumerate(guards)}
    writes = {name: _writes(bound, turns[name]) for name, bound in guards.items() if bound.health is not None}
    found = {}
    for name, bound in guards.items():
        read = _reads(bound, turns[name])
        changed_by = tuple(other for other, written in writes.items() if other != name and written < read)
        if len(changed_by) > MOST_REACHING:
            raise AttachError(
                f"guard {name!r}: got {len(changed_by)} interventions that change what it reads "
                f"({', '.join(changed_by)}), wanted at most {MOST_REACHING}: its canaries go through the engine under "
                "every set of them; leave some out here, or serve them by another server"
            )
        before = [other for other in writes if name in writes and turns[other] < turns[name]]
        acts_after = tuple(other for other in before if _places(guards[other]) & _places(bound))
        found[name] = Beside(changed_by, acts_after)
    return found


def _places(bound: Bound) -> set[Place]:
    return {column.place for column in bound.columns}


def _writes(bound: Bound, turn: int) -> Moment:
    """When an intervention first changes something."""
    return min((place.layer, STEPS[place.site], float(turn)) for place in _places(bound))


def _reads(bound: Bound, turn: int) -> Moment:
    """When a guard last reads something: a detector after all that change its place, an intervention in its turn."""
    return max(_read(place, inf if bound.health is None else float(turn)) for place in _places(bound))


def _read(place: Place, turn: float) -> Moment:
    taken = SITES[place.site].takes
    if taken is not None:  # what it is made of, and not what is changed
        return place.layer, STEPS[taken], inf
    return place.layer, STEPS[place.site], turn
