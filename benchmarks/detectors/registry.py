"""The detectors under test by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.detectors.base import Calibrate
from benchmarks.detectors.cubes import ksd, paper
from benchmarks.detectors.plans import FRAMES, ONE_FRAME, SOURCES, Plan


@dataclass(frozen=True)
class Entry:
    """A detector: how it is fitted, and on what."""

    name: str
    plan: Plan
    calibrate: Calibrate


_ALL = (Entry("paper", ONE_FRAME, paper), Entry("ksd", FRAMES, ksd), Entry("ksd-sources", SOURCES, ksd))
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
assert len(ENTRIES) == len(_ALL)
