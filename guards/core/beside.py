"""What the guards that are served together are to one another, in words."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Beside:
    """What other guards are to one, by name and in the order in which guards are given.

    `changed_by`: interventions that change what it reads. `acts_after`: of an intervention, those that change the same
    place before it does.
    """

    changed_by: tuple[str, ...] = ()
    acts_after: tuple[str, ...] = ()

    def sets_off(self) -> Iterator[frozenset[str]]:
        """Every set of `changed_by` that a request may have off, all of them first: so it was calibrated."""
        for count in range(len(self.changed_by), -1, -1):
            yield from map(frozenset, combinations(self.changed_by, count))


ALONE = Beside()
"""No other guard is anything to this one."""


def switched(changed_by: Sequence[str], off: Collection[str]) -> str:
    """In words which of these are on and which are off, for a sentence to go on with; "" where there are none."""
    on, without = [each for each in changed_by if each not in off], [each for each in changed_by if each in off]
    return "".join(f", with {' and '.join(names)} {side}" for side, names in (("on", on), ("off", without)) if names)
