"""Puts something on a site of a model: the one installer for serving and for capture, on every backend.

What acts is added to the site's module as a child, and a hook calls it by its name. A hook that finds what it calls on
the module itself survives `torch.compile`, where it is installed before the first pass.

Suffixes: T tokens, F width of the site (this rank's slice of it).
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from guards.errors import AttachError, GuardReadingError
from guards.model.sites import End, Form, Tap


class Purpose(StrEnum):
    """What is put there. Hooks of a module run in the order in which they were installed: changes first."""

    CHANGE = "skillguard_change"
    SCORE = "skillguard_score"
    COPY = "skillguard_copy"


def install(tap: Tap, purpose: Purpose, act: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Lets `act` see every token's vector at a site, x [T, F], never a copy; returns what takes it off again.

    At a site of both ends it sees what the module gives, and what the module takes beside that. Of a sum of two tensors
    it sees a third: for a token whose sum it changed the module gives the changed sum and zeros, for others the two as
    they were, bit for bit. `dtype` is the model's.
    Raises AttachError where a purpose is there already, or where a site of both ends would be read and not changed. In
    the pass, GuardReadingError is raised where x is hidden.
    """
    module, name = tap.module, f"{purpose.value}_{tap.end.value}"
    if hasattr(module, name):
        raise AttachError(f"{type(module).__name__} has a {name} already: attach guards together")
    if purpose is not Purpose.CHANGE and tap.end is End.BOTH:
        raise AttachError("a site of both ends is for changes: read what its module takes, or the residual stream")
    module.add_module(name, act)
    part = _PARTS[tap.form]

    def on_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        getattr(module, name)(part(args[0], dtype))

    def on_output(module: nn.Module, _: Any, output: Any) -> None:
        getattr(module, name)(part(output, dtype))

    def on_both(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        getattr(module, name)(part(output, dtype), part(args[0], dtype))

    def on_sum(module: nn.Module, _: Any, output: Any) -> tuple[Tensor, Tensor]:
        x_TF, (hidden, residual) = part(output, dtype), output
        before_TF = x_TF.clone()
        getattr(module, name)(x_TF)
        changed = (x_TF != before_TF).any(dim=-1).view(*hidden.shape[:-1], 1)
        return torch.where(changed, x_TF.view_as(hidden), hidden), torch.where(changed, 0, residual)

    if tap.end is End.INPUT:
        handle = module.register_forward_pre_hook(on_input)
    elif tap.end is End.BOTH:
        handle = module.register_forward_hook(on_both)
    elif tap.form is Form.SUM and purpose is Purpose.CHANGE:
        handle = module.register_forward_hook(on_sum)
    else:
        handle = module.register_forward_hook(on_output)

    def remove() -> None:
        handle.remove()
        if hasattr(module, name):
            delattr(module, name)

    return remove


def require_vectors(x: Any, dtype: torch.dtype) -> Tensor:
    """Vectors [T, F] of a module's tensor, or of the first of several. Raises GuardReadingError where it is hidden."""
    if isinstance(x, tuple):  # vLLM's layers give (output, bias)
        x = x[0]
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise GuardReadingError(
            "this model's activation and quantisation are fused, which hides the key vector: serve it "
            "unquantised, or in a format that quantises inside the linear layer"
        )
    return x.view(-1, x.shape[-1])  # never a copy, in which a change would be lost


def _first_half(x: Any, dtype: torch.dtype) -> Tensor:
    x_TF = require_vectors(x, dtype)
    return x_TF[:, : x_TF.shape[-1] // 2]


def _sum(x: Any, dtype: torch.dtype) -> Tensor:
    if not isinstance(x, tuple) or len(x) != 2:
        raise GuardReadingError(f"got a {type(x).__name__} from a block, wanted (hidden, residual)")
    return require_vectors(x[0] + x[1], dtype)


_PARTS: dict[Form, Callable[[Any, torch.dtype], Tensor]] = {
    Form.WHOLE: require_vectors,
    Form.FIRST_HALF: _first_half,
    Form.SUM: _sum,
}
