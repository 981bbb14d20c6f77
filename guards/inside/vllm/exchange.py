"""Another artifact's numbers in the place of a guard's, inside a graph that is compiled already.

The graph reads a guard's tensors as inputs, and has everything else of it baked in. So an artifact can take a guard's
place where the two differ in the values of tensors alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.guard import Bound
from guards.errors import AttachError

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def require_like(running: Bound, offered: Bound) -> None:
    """Raises AttachError where a guard is judged, or looks, otherwise than by other numbers at the same places."""
    for what in ("parts", "columns", "health"):
        got, wanted = getattr(offered, what), getattr(running, what)
        if got != wanted:
            raise AttachError(f"its {what} are {_short(got)}, and those of the graph are {_short(wanted)}")


def pairs(running: nn.Module, offered: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of what runs at a place, each with a copy of the offered one.

    Raises AttachError where the two differ in more than numbers.
    """
    ours, others = dict(running.named_modules()), dict(offered.named_modules())
    if {name: type(each) for name, each in ours.items()} != {name: type(each) for name, each in others.items()}:
        raise AttachError(f"it acts by a {type(offered).__name__}, and the graph by a {type(running).__name__}")
    for name, module in ours.items():
        if _constants(module) != _constants(others[name]):
            raise AttachError(f"its {type(module).__name__} has {_constants(others[name])}, not {_constants(module)}")
    yield from _matched(dict(_tensors(running)), dict(_tensors(offered)))


def swap(matched: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Exchanges the values of tensors, in place: twice is as before."""
    before = [ours.clone() for ours, _ in matched]
    for (ours, others), own in zip(matched, before, strict=True):
        ours.copy_(others)
        others.copy_(own)


def _matched(ours: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for name in sorted(ours.keys() | others.keys()):
        shapes = [None if name not in of else (tuple(of[name].shape), of[name].dtype) for of in (others, ours)]
        if shapes[0] != shapes[1]:
            raise AttachError(f"its tensor {name} is {shapes[0]}, and the graph's {shapes[1]}")
        yield ours[name], others[name].clone()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()


def _constants(module: nn.Module) -> dict[str, Any]:
    """What a graph has baked in. A tensor among them has no single truth value, and is refused."""
    constants = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    if hidden := [name for name, value in constants.items() if isinstance(value, torch.Tensor)]:
        raise AttachError(f"{type(module).__name__} keeps {hidden[0]} outside of its buffers")
    return constants


def _short(value: object) -> str:
    return f"{value}"[:200]
