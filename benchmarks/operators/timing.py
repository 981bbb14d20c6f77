"""Every kind of operator at one place, against a copy of the vectors it reads.

Suffixes: T tokens, F width of a site, D that of the residual stream.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.synthetic import FRACTION
from guards.contract.guard import fuse
from guards.methods.cube.guard import CubeBank
from guards.methods.delta import Branch
from guards.methods.neuron_adjust.guard import Adjuster, Draw, LayerStatistics
from guards.methods.probe_project.guard import Boundary, Projection
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


def _stream(width: int) -> int:
    """d_model beside such a d_ff, as in Llama's family."""
    return max(1, width * 4 // 11)


def _projection(width: int) -> Projection:
    direction_D = torch.nn.functional.normalize(torch.randn(width), dim=0)
    return Projection(Boundary(0, direction_D, 0.0, 1.0), 1.0, torch.device("cpu"))


def _branch(rank: int) -> Callable[[int], Branch]:
    return lambda width: Branch(1e-3 * torch.randn(rank + 1, width), 1e-3 * torch.randn(_stream(width), rank))


MADE: dict[str, Callable[[int], nn.Module]] = {
    "cube": lambda width: CubeBank(torch.rand(1, width), torch.rand(1, width)),
    "over spans": lambda width: SpanBank(torch.randn(1, width), torch.zeros(1), [4]),
    "neuron adjust 3 %": _adjuster,
    "selective pruning 3 %": lambda width: Pruner(_neurons(width)),
    "projection": _projection,
    "rank 1 beside the weight": _branch(1),
    "rank 16 beside the weight": _branch(16),
}
"""LUNAR, RMU and their kind are ranks beside a weight. A projection reads the residual stream: of it, d_ff is that."""
DETECTORS = ("cube", "over spans")
"""Of these there may be many at one place."""
MODES = {"eager": False, "compiled": True}


def operator(method: str, width: int, guards: int, *, compiled: bool) -> Callable[..., Any]:
    """What runs at a place that so many guards of a method read."""
    torch.manual_seed(0)
    ((act, _),) = fuse([MADE[method](width) for _ in range(guards)])
    if compiled:
        torch._dynamo.reset()
        return torch.compile(act, fullgraph=True, dynamic=True)
    return act


def _read_by(method: str, x_TF: Tensor) -> tuple[Tensor, ...]:
    """What an operator is called with, in a pass that reads these vectors."""
    tokens, width = x_TF.shape
    positions_T = torch.arange(tokens)
    if method in DETECTORS:
        return x_TF, positions_T
    on_T = torch.ones(tokens, dtype=torch.bool)
    if method.endswith("beside the weight"):
        return torch.randn(tokens, _stream(width)).to(x_TF.dtype), positions_T, on_T, x_TF
    return x_TF, positions_T, on_T


def _seconds(work: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


@torch.no_grad()
def against_copy(act: Callable[..., Any], method: str, tokens: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of an operator and of a copy of what it reads, in turns; the medians, and that of the ratios."""
    x_TF = torch.randn(tokens, width).to(dtype)
    room_TF, read = torch.empty_like(x_TF), _read_by(method, x_TF)

    def copy() -> object:
        return room_TF.copy_(x_TF)

    def run() -> object:
        return act(*read)

    repeats = [max(1, round(LEAST_SECONDS / min(_seconds(work, 1) for _ in range(3)))) for work in (copy, run)]
    pairs = [(_seconds(copy, repeats[0]), _seconds(run, repeats[1])) for _ in range(ROUNDS)]
    copied, ran = (median(each) for each in zip(*pairs, strict=True))
    return {
        "bytes": x_TF.numel() * x_TF.element_size(),
        "copy_us": round(1e6 * copied, 2),
        "operator_us": round(1e6 * ran, 2),
        "times_copy": round(median(after / before for before, after in pairs), 2),
    }


def cells(
    widths: Sequence[int],
    tokens: Sequence[int],
    guards: Sequence[int],
    dtype: torch.dtype,
    modes: Sequence[str] = tuple(MODES),
) -> Iterator[dict[str, Any]]:
    """Rows of all methods; of interventions one at a place."""
    for method in MADE:
        for width in widths:
            for count in guards if method in DETECTORS else [1]:
                for mode in modes:
                    act = operator(method, width, count, compiled=MODES[mode])
                    for size in tokens:
                        figures = against_copy(act, method, size, width, dtype)
                        yield {
                            "method": method,
                            "d_ff": width,
                            "tokens": size,
                            "guards": count,
                            "mode": mode,
                            **figures,
                        }
