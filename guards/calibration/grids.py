"""What is said of a number that was chosen among some."""

from collections.abc import Sequence


def at_edge(name: str, chosen: float, tried: Sequence[float]) -> list[str]:
    """A note where the best of three or more is the first or last: what lies beyond was not looked at."""
    if len(tried) < 3 or min(tried) < chosen < max(tried):
        return []
    which, beyond = ("least", "smaller") if chosen == min(tried) else ("largest", "larger")
    return [f"{name} {chosen:g} is the {which} that was tried: a {beyond} one might do better"]
