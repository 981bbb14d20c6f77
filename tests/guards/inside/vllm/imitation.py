"""vLLM's model classes, imitated as far as guards look at them: names, widths, and what modules take and give.

Projections give (output, bias), blocks (hidden, residual). Tensor-parallel ranks are threads, which wait for each other
where those of vLLM do.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tests.models import D_FF, D_MODEL, LAYERS

D_ATTENTION = D_MODEL + 4
"""Heads need not be as wide as the model."""


T = TypeVar("T")


class _Ranks(threading.local):
    """Which rank the running thread is, and how it meets the others."""

    index = 0
    barrier: threading.Barrier | None = None
    brought: list[Any]


_HERE = _Ranks()
SECONDS = 60


def gathered(x: Tensor) -> list[Tensor]:
    """What every rank brings, in their order: of a thread that is no rank, its own alone."""
    if _HERE.barrier is None:
        return [x]
    _HERE.brought[_HERE.index] = x
    _HERE.barrier.wait(SECONDS)
    found = list(_HERE.brought)
    _HERE.barrier.wait(SECONDS)
    return found


def all_reduce(x: Tensor) -> Tensor:
    """The sum of what every rank brings."""
    return torch.stack(gathered(x)).sum(dim=0)


def on_ranks(patch: pytest.MonkeyPatch, works: Sequence[Callable[[], T]]) -> list[T]:
    """Each work on a rank of its own, all at once."""
    barrier, brought = threading.Barrier(len(works)), [None] * len(works)

    def all_gather(x: Tensor, dim: int) -> Tensor:
        assert x.numel(), "gathering nothing kills vLLM's workers on CPUs"
        return torch.cat(gathered(x), dim=dim)

    def of_rank(index: int) -> T:
        _HERE.index, _HERE.barrier, _HERE.brought = index, barrier, brought
        try:
            return works[index]()
        except BaseException:
            barrier.abort()
            raise

    distributed: Any = ModuleType("vllm.distributed")
    distributed.tensor_model_parallel_all_gather = all_gather
    distributed.tensor_model_parallel_all_reduce = all_reduce
    with patch.context() as patched, ThreadPoolExecutor(len(works)) as threads:
        patched.setitem(sys.modules, "vllm.distributed", distributed)
        return list(threads.map(of_rank, range(len(works))))


class ParallelLinear(nn.Linear):
    """A rank's slice of a layer that knows its whole size, and gives (output, bias).

    Where the slice is one of its inputs, what ranks give is added up, unless `reduce_results` says no.
    """

    reduce_results = True

    def __init__(self, inputs: int, outputs: int, *, of: tuple[int, int] | None = None) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.input_size, self.output_size = of or (inputs, outputs)
        self.tp_size = self.input_size // inputs

    def forward(self, x: Tensor) -> Any:
        output = super().forward(x)
        return all_reduce(output) if self.reduce_results and self.tp_size > 1 else output, None


class PPMissingLayer(nn.Identity):
    """A block that another pipeline stage holds."""


class MLP(nn.Module):
    """[gate | up], silu, down."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        width = D_FF // ranks
        self.gate_up_proj = ParallelLinear(D_MODEL, 2 * width, of=(D_MODEL, 2 * D_FF))
        self.down_proj = ParallelLinear(width, D_MODEL, of=(D_FF, D_MODEL))

    def forward(self, x: Tensor) -> Tensor:
        gate_up, _ = self.gate_up_proj(x)
        gate, up = gate_up.chunk(2, dim=-1)
        output: Tensor = self.down_proj(silu(gate) * up)[0]
        return output


class Attention(nn.Module):
    """Every token attends to itself alone."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        width = D_ATTENTION // ranks
        self.v_proj = ParallelLinear(D_MODEL, width, of=(D_MODEL, D_ATTENTION))
        self.o_proj = ParallelLinear(width, D_MODEL, of=(D_ATTENTION, D_MODEL))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.o_proj(self.v_proj(x)[0])[0]
        return output


class Block(nn.Module):
    """A residual block, attention and feed-forward in parallel: both read the residual stream, which is a sum."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(ranks), MLP(ranks)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x = hidden if residual is None else hidden + residual
        return self.self_attn(x) + self.mlp(x), x


class Body(nn.Module):
    """All blocks; those of other stages are left out."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(64, D_MODEL)
        self.layers = nn.ModuleList(Block(ranks) for _ in range(LAYERS))

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for layer in self.layers:
            if not isinstance(layer, PPMissingLayer):
                hidden, residual = layer(hidden, residual)
        return hidden, residual


class Stage:
    """vLLM's IntermediateTensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors


class LlamaForCausalLM(nn.Module):
    """Called by keyword, as vLLM's runner calls it."""

    def __init__(self, ranks: int = 1, *, last: bool = True) -> None:
        super().__init__()
        self.model, self.last = Body(ranks), last

    def forward(self, *, input_ids: Tensor, positions: Tensor, intermediate_tensors: Stage | None = None) -> Any:
        del positions
        if intermediate_tensors is None:
            hidden, residual = self.model(self.model.embed_tokens(input_ids), None)
        else:
            hidden, residual = self.model(*map(intermediate_tensors.tensors.get, ("hidden", "residual")))
        return hidden + residual if self.last else Stage({"hidden": hidden, "residual": residual})


def sliced(whole: LlamaForCausalLM, rank: int, ranks: int) -> LlamaForCausalLM:
    """The slice of a model that one tensor-parallel rank holds."""
    part = LlamaForCausalLM(ranks)
    here, heads = (slice(rank * width // ranks, (rank + 1) * width // ranks) for width in (D_FF, D_ATTENTION))
    part.model.embed_tokens = whole.model.embed_tokens
    mine: Any
    theirs: Any
    for mine, theirs in zip(part.model.layers, whole.model.layers, strict=True):
        gate, up = theirs.mlp.gate_up_proj.weight.chunk(2)
        mine.mlp.gate_up_proj.weight = nn.Parameter(torch.cat([gate[here], up[here]]))
        mine.mlp.down_proj.weight = nn.Parameter(theirs.mlp.down_proj.weight[:, here])
        mine.self_attn.v_proj.weight = nn.Parameter(theirs.self_attn.v_proj.weight[heads])
        mine.self_attn.o_proj.weight = nn.Parameter(theirs.self_attn.o_proj.weight[:, heads])
    return part
