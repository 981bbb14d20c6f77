"""The methods that are compared, and how each one's options are chosen: on validation texts, by one rule for all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.methods.material import OWN, SKILL, Material, examples
from benchmarks.methods.perplexity import Said, ratio, said
from guards.calibration.entry import Entry
from guards.calibration.finished import Calibration
from guards.calibration.options import CommonOptions
from guards.contract.guard import Guard
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.cube.options import CubeOptions
from guards.methods.lunar.options import LunarOptions
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.probe.options import ProbeOptions
from guards.methods.probe_project.options import ProjectOptions
from guards.methods.registry import CUBE, LUNAR, NEURON_ADJUST, PROBE, PROBE_PROJECT, SELECTIVE_PRUNING
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.options import AdaptiveOptions, CosineOptions, RmuOptions
from guards.methods.selective_pruning.options import PruningOptions

CAP = 1.1
"""How many times the perplexity of what is kept may become, its columns' geometric mean, on validation texts."""
CHAT: Any = {"frames": ("chat",), "progress": True}
TRAINED: Any = {"frames": ("chat", "bare"), "progress": True, "steps": 40, "length": 64, "rate": 1e-3, "max_rank": 16}
"""Steps that a CPU can make; papers make more of them, at a lower rate."""


@dataclass(frozen=True)
class Candidate:
    """One way to calibrate a method; `said` is what of it is tried, for people."""

    said: str
    options: CommonOptions


@dataclass(frozen=True)
class Compared:
    """A method with the options that are tried. `about`: what they have in common, for people."""

    entry: Entry
    candidates: tuple[Candidate, ...]
    about: str = ""


def _tried(
    kind: Callable[..., CommonOptions], common: Mapping[str, Any], name: str, *values: float
) -> tuple[Candidate, ...]:
    return tuple(Candidate(f"{name} {value:g}", kind(**common, **{name: value})) for value in values)


_TRAINED = f"{TRAINED['steps']} steps at {TRAINED['rate']:g}, on {TRAINED['length']} tokens of a text"
COMPARED: Mapping[str, Compared] = {
    "cube": Compared(CUBE, (Candidate("", CubeOptions(**CHAT)),), "`calibrate ksd --variant paper`, in chats"),
    "probe": Compared(
        PROBE,
        (Candidate("", ProbeOptions(**CHAT, aggregation="last", answers=0, material="none", longest=512)),),
        "`calibrate probe --aggregation last`, in chats, as in the paper: answers are not judged. Its figures are of a "
        "tau that did not keep the cap, which is mended since: it would refuse less now, or not be written",
    ),
    "probe-project": Compared(
        PROBE_PROJECT,
        _tried(ProjectOptions, {**CHAT, "aggregation": "last", "material": "none", "longest": 512}, "beta", 4, 16),
        "`calibrate probe --variant project --aggregation last`, in chats, of one layer in each third of the model",
    ),
    "neuron-adjust": Compared(
        NEURON_ADJUST,
        _tried(NeuronAdjustOptions, CHAT, "fraction", 0.005, 0.015, 0.03),
        "`calibrate neuron-adjust`, at .5, 1.5 and 3 % of neurons, as in the paper",
    ),
    "selective-pruning": Compared(
        SELECTIVE_PRUNING,
        _tried(PruningOptions, CHAT, "fraction", 0.005, 0.015, 0.03),
        "`calibrate selective-pruning`, at .5, 1.5 and 3 % of neurons",
    ),
    "lunar": Compared(
        LUNAR,
        _tried(LunarOptions, {**CHAT, "material": "none"}, "strength", 2, 8),
        "`calibrate lunar --material none`, towards questions that cannot be answered; 2 is the paper's strength",
    ),
    "rmu-adaptive": Compared(
        VARIANTS["adaptive"],
        _tried(AdaptiveOptions, TRAINED, "alpha", 10, 100),
        f"`calibrate rmu --variant adaptive`, {_TRAINED}",
    ),
    "rmu": Compared(
        VARIANTS["rmu"],
        _tried(RmuOptions, {**TRAINED, "c": 400.0}, "alpha", 10, 100),
        f"`calibrate rmu --variant rmu`, c 400, which fits this model's lengths, {_TRAINED}",
    ),
    "rmu-cosine": Compared(
        VARIANTS["cosine"],
        _tried(CosineOptions, TRAINED, "alpha", 1, 4),
        f"`calibrate rmu --variant cosine`, alpha learned from there on, {_TRAINED}",
    ),
}
"""By row. Beside them are the model without a guard, and the detector that is given."""


def guarding(loaded: LoadedModel, guard: tuple[Entry, Guard] | None) -> AbstractContextManager[None]:
    """The model with a guard on it, or as it is."""
    return nullcontext() if guard is None else loaded.guarded(*guard)


def all_said(
    loaded: LoadedModel, of: Mapping[str, Any], guard: tuple[Entry, Guard] | None = None
) -> dict[str, list[Said]]:
    """What the model with a guard makes of every column's answers."""
    with guarding(loaded, guard):
        return {column: said(loaded, examples(loaded.codec, items)) for column, items in of.items()}


def judged(here: Mapping[str, Sequence[Said]], there: Mapping[str, Sequence[Said]]) -> tuple[float, float]:
    """How many times the perplexity of forgotten answers became, and of kept ones: their columns' geometric mean."""
    found = {column: float(ratio(each, there[column])["ratio"]) for column, each in here.items()}
    return found.pop(OWN), geometric_mean(found.values())


def best(tried: Sequence[tuple[float, float]]) -> int:
    """The one that forgets most among those that keep the cap; where none does, the one that disturbs least."""
    kept = [index for index, (_, disturbed) in enumerate(tried) if disturbed <= CAP]
    if not kept:
        return min(range(len(tried)), key=lambda index: tried[index][1])
    return max(kept, key=lambda index: tried[index][0])


def make(
    loaded: LoadedModel, row: str, texts: Material, unguarded: Mapping[str, Sequence[Said]], folder: Path
) -> list[dict[str, Any]]:
    """Calibrates a row's candidates and writes the best as an artifact; returns what was tried.

    `unguarded`: what the model alone makes of the texts that options are chosen on. Raises CalibrationError where no
    candidate gives a guard.
    """
    of, found, tried = COMPARED[row], list[Calibration](), list[tuple[float, float]]()
    shown: list[dict[str, Any]] = []

    def calibrated(candidate: Candidate) -> Calibration:
        return of.entry.calibrate(loaded, [texts.forget], list(texts.retain), candidate.options)

    if len(of.candidates) == 1:
        calibrated(of.candidates[0]).save(folder, SKILL)
        return []
    for candidate in of.candidates:
        try:
            made = calibrated(candidate)
        except CalibrationError as error:
            shown.append({"options": candidate.said, "refused": str(error), "chosen": False})
            continue
        found.append(made)
        tried.append(judged(all_said(loaded, texts.chosen_on, (of.entry, made.guard)), unguarded))
        shown.append({"options": candidate.said, "forgotten": tried[-1][0], "kept": tried[-1][1], "chosen": False})
    if not found:
        raise CalibrationError(f"{row}: no options gave a guard: {shown[0]['refused']}")
    chosen = best(tried)
    found[chosen].save(folder, SKILL)
    [each for each in shown if "refused" not in each][chosen]["chosen"] = True
    return shown
