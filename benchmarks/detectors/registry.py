"""The detectors under test by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.detectors.plans import FRAMES, ONE_FRAME, SOURCES, Plan
from benchmarks.detectors.variants import Calibrate, cube, paper, spans


@dataclass(frozen=True)
class Entry:
    """A detector: how it is fitted, and on what."""

    name: str
    plan: Plan
    calibrate: Calibrate


_ALL = (Entry("paper", ONE_FRAME, paper), Entry("cube", FRAMES, cube), Entry("spans", SOURCES, spans))
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
