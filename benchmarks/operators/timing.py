"""Every method's operator at one place, against a copy of the vectors it reads.

Suffixes: T tokens, F width of a site.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.synthetic import FRACTION
from guards.contract.guard import fuse
from guards.methods.cube.guard import CubeBank
from guards.methods.neuron_adjust.guard import Adjuster, Draw, LayerStatistics
from guards.methods.selective_pruning.guard import Pruner
from guards.methods.spans.guard import SpanBank

ROUNDS = 9
LEAST_SECONDS = 0.004
"""A round repeats what takes less."""


def _neurons(width: int) -> Tensor:
    return torch.randperm(width)[: max(1, int(FRACTION * width))].sort().values


def _adjuster(width: int) -> Adjuster:
    neurons_S = _neurons(width)
    values = (torch.full((len(neurons_S),), value) for value in (0.1, 1.0, -0.1, 1.0))
    return Adjuster(LayerStatistics(neurons_S, *values), 0, 0, Draw.RANDOM, 0)


MADE: dict[str, Callable[[int], nn.Module]] = {
    "cube": lambda width: CubeBank(torch.rand(1, width), torch.rand(1, width)),
    "over spans": lambda width: SpanBank(torch.randn(1, width), torch.zeros(1), [4]),
    "neuron adjust 3 %": _adjuster,
    "selective pruning 3 %": lambda width: Pruner(_neurons(width)),
}
DETECTORS = ("cube", "over spans")
"""Of these there may be many at one place."""


def operator(method: str, width: int, guards: int, *, compiled: bool) -> Callable[[Tensor, Tensor], Any]:
    """What runs at a place that so many guards of a method read."""
    torch.manual_seed(0)
    ((act, _),) = fuse([MADE[method](width) for _ in range(guards)])
    if compiled:
        torch._dynamo.reset()
        return torch.compile(act, fullgraph=True, dynamic=True)
    return act


def _seconds(work: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


@torch.no_grad()
def against_copy(act: Callable[[Tensor, Tensor], Any], tokens: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of an operator and of a copy of what it reads, in turns; the medians, and that of the ratios."""
    x_TF, positions_T = torch.randn(tokens, width).to(dtype), torch.arange(tokens)
    room_TF = torch.empty_like(x_TF)

    def copy() -> object:
        return room_TF.copy_(x_TF)

    def run() -> object:
        return act(x_TF, positions_T)

    repeats = [max(1, round(LEAST_SECONDS / min(_seconds(work, 1) for _ in range(3)))) for work in (copy, run)]
    pairs = [(_seconds(copy, repeats[0]), _seconds(run, repeats[1])) for _ in range(ROUNDS)]
    copied, ran = (median(each) for each in zip(*pairs, strict=True))
    return {
        "bytes": x_TF.numel() * x_TF.element_size(),
        "copy_us": round(1e6 * copied, 2),
        "operator_us": round(1e6 * ran, 2),
        "times_copy": round(median(after / before for before, after in pairs), 2),
    }


def cells(widths: list[int], tokens: list[int], guards: list[int], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Rows of all methods, eager and compiled; of interventions one at a place."""
    for method in MADE:
        for width in widths:
            for count in guards if method in DETECTORS else [1]:
                for compiled in (False, True):
                    act = operator(method, width, count, compiled=compiled)
                    mode = "compiled" if compiled else "eager"
                    for size in tokens:
                        figures = against_copy(act, size, width, dtype)
                        yield {
                            "method": method,
                            "d_ff": width,
                            "tokens": size,
                            "guards": count,
                            "mode": mode,
                            **figures,
                        }
