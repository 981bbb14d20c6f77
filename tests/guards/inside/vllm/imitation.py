"""vLLM's model classes, imitated as far as guards look at them: names, widths, and outputs with a bias beside them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tests.models import D_FF, D_MODEL, LAYERS

D_ATTENTION = D_MODEL + 4
"""Heads need not be as wide as the model."""


class ParallelLinear(nn.Linear):
    """A rank's slice of a layer that knows its whole size, and gives (output, bias)."""

    def __init__(self, inputs: int, outputs: int, *, of: tuple[int, int] | None = None) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.input_size, self.output_size = of or (inputs, outputs)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


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
    """A residual block, attention and feed-forward in parallel: at layer 0 a rank's slice of either has all inputs."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(ranks), MLP(ranks)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.self_attn(x) + self.mlp(x)
        return output


class Body(nn.Module):
    """All blocks; those of other stages pass through."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(64, D_MODEL)
        self.layers = nn.ModuleList(Block(ranks) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = nn.Sequential(*self.layers)(x)
        return output


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
        first = intermediate_tensors is None
        x = self.model.embed_tokens(input_ids) if first else intermediate_tensors.tensors["hidden"]  # type: ignore[union-attr]
        x = self.model(x)
        return x if self.last else Stage({"hidden": x})


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
