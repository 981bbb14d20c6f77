"""Puts guards on a transformers model, all or nothing, and takes them off again.

One forward pass at a time. A pre-hook on the model itself learns which rows will be sampled (`logits_to_keep`) and
every token's position; the hooks inside the blocks score those rows only, so a detector costs one pass over one key
vector per sampled token however long the prompt is (a pooled one needs every token's, once); `take` then hands out one
reading per guard and row, in the order of the logits' rows. A guard that was not heard of reads MISSING, which nothing
treats as a pass.

Interventions are installed before detectors, in whatever order guards are given: hooks of a module run as installed,
and a key vector is to be scored as the model goes on with it.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.guard import Bound, BoundDetector, BoundIntervention, Guard, detectors, interventions
from guards.contract.method import Method
from guards.contract.running import RunningMeans
from guards.core.verdict import Reading
from guards.errors import AttachError, GuardReadingError
from guards.inside.transformers.sequences import Sequences, find_sequences
from guards.model.shard import WHOLE
from guards.model.sites import ModelSites, Place, Site


@dataclass(frozen=True)
class Readings:
    """What every guard says about R sampled rows. Tensors lie on the host.

    `codes_RG`: `Reading` values, one column per guard in the order of `names`. `scores`: per guard, float32 [R, parts].
    """

    names: tuple[str, ...]
    codes_RG: Tensor
    scores: Mapping[str, Tensor]


@dataclass
class _Forward:
    """State of the running forward pass. `rows_R` None means every token.

    `pooled`: per pooled guard, the sum over the layers so far of every token's values [T, parts]. `sequences` is set
    where there is such a guard.
    """

    rows_R: Tensor | None
    positions_T: Tensor
    scores: dict[tuple[str, int], Tensor]
    shifted: dict[str, Tensor]
    pooled: dict[str, Tensor]
    sequences: Sequences | None
    fired: set[tuple[str, Place]]


class Attachment:
    """Guards installed on a model. Use as a context manager, or call `remove`."""

    def __init__(self, model: nn.Module, sites: ModelSites, guards: Mapping[str, tuple[Method, Guard]]) -> None:
        device = next(model.parameters()).device
        self.bound: dict[str, Bound] = {}
        self._places: dict[str, tuple[Place, ...]] = {}
        self._forward: _Forward | None = None
        self._fused = sites.family.fused_gate_up
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True).remove)
            for name, (method, guard) in guards.items():
                bound = method.bind(guard, device, WHOLE)
                wrong = [layer for layer in bound.layers if not 0 <= layer < len(sites.layers)]
                if wrong or not bound.layers:
                    raise AttachError(
                        f"guard {name!r} wants layers {list(bound.layers)}, the model has {len(sites.layers)}"
                    )
                self.bound[name] = bound
            for name, intervention in interventions(self.bound).items():
                self._places[name] = intervention.places
                for place in intervention.places:
                    stack.callback(self._install_change(name, intervention, place, sites))
            for name, detector in detectors(self.bound).items():
                self._places[name] = tuple(Place(layer, detector.site) for layer in detector.layers)
                for place in self._places[name]:
                    hook = self._score_hook(name, detector, place)
                    stack.callback(sites.layers[place.layer].at(place.site).register_forward_pre_hook(hook).remove)
            self._means = {
                name: RunningMeans(len(detector.parts), device)
                for name, detector in detectors(self.bound).items()
                if detector.pooled
            }
            self._stack = stack.pop_all()

    def _install_change(
        self, name: str, bound: BoundIntervention, place: Place, sites: ModelSites
    ) -> Callable[[], None]:
        """Installs one intervention at one place; returns what takes it off."""
        change = self._change(name, bound, place, sites.width(place.site))
        module = sites.layers[place.layer].at(place.site)
        if place.site is Site.PRE_ACTIVATION:
            return module.register_forward_hook(lambda _, __, output: change(output)).remove
        return module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:])).remove

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Takes every hook off. Safe to call twice."""
        self._stack.close()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise GuardReadingError("got a forward pass without input_ids: guards need to know the rows")
        batch, length = ids.shape
        positions = kwargs.get("position_ids")
        if positions is None:
            cache = kwargs.get("past_key_values")
            start = 0 if cache is None else int(cache.get_seq_length())
            positions = torch.arange(start, start + length, device=ids.device)
        positions = positions.expand(batch, length)
        rows = kwargs.get("logits_to_keep")
        if isinstance(rows, Tensor):
            if batch != 1:
                raise GuardReadingError(f"got logits_to_keep with a batch of {batch}, wanted a packed batch of 1")
        elif rows:
            raise GuardReadingError(f"got logits_to_keep={rows!r}, wanted a tensor of row indices")
        else:
            rows = None
        sequences = find_sequences(kwargs, positions) if self._means else None
        self._forward = _Forward(rows, positions.reshape(-1), {}, {}, {}, sequences, set())

    def _running(self, name: str, place: Place) -> _Forward:
        forward = self._forward
        if forward is None:
            raise GuardReadingError(f"guard {name!r}: layer {place.layer} ran outside a forward pass of the model")
        if (name, place) in forward.fired:
            raise GuardReadingError(f"guard {name!r}: layer {place.layer} ran twice in one forward pass")
        forward.fired.add((name, place))
        return forward

    def _score_hook(
        self, name: str, bound: BoundDetector, place: Place
    ) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        parts, bank = bound.at(place.layer)

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            forward = self._running(name, place)
            key_TF = args[0].reshape(-1, args[0].shape[-1])
            if bound.pooled:
                value_TC, before = bank(key_TF), forward.pooled.get(name)
                forward.pooled[name] = value_TC if before is None else before + value_TC
                return
            if forward.rows_R is not None:
                key_TF = key_TF.index_select(0, forward.rows_R)
            for part, score_T in zip(parts, bank(key_TF).unbind(dim=-1), strict=True):
                forward.scores[name, part] = score_T

        return hook

    def _change(self, name: str, bound: BoundIntervention, place: Place, width: int) -> Callable[[Tensor], Tensor]:
        act = bound.at(place, width)
        gate_half = self._fused and place.site is Site.PRE_ACTIVATION

        def change(x: Tensor) -> Tensor:
            forward = self._running(name, place)
            if x.requires_grad:
                x = x.clone()
            x_TF = x.view(-1, x.shape[-1])  # never a copy, in which a change would be lost
            if gate_half:
                x_TF = x_TF[:, : x_TF.shape[-1] // 2]
            moved_T = act(x_TF, forward.positions_T)
            before = forward.shifted.get(name)
            forward.shifted[name] = moved_T if before is None else before + moved_T
            return x

        return change

    def take(self, rows: int) -> Readings:
        """Readings of the forward pass that just ended, for its first `rows` logits rows; forgets the pass.

        Raises GuardReadingError when no pass ran since the last call.
        """
        forward, self._forward = self._forward, None
        if forward is None:
            raise GuardReadingError("no guarded forward pass ran: the model was called around its hooks")
        columns, blocks = [], []
        for name, bound in self.bound.items():
            scores = self._scores(name, bound, forward, rows)
            if scores is None:
                width = len(bound.parts)
                scores = torch.full((rows, width), torch.nan)
                code = torch.full((rows,), int(Reading.MISSING))
            else:
                code = _codes(scores, bound.taus)
            columns.append(code.to("cpu", torch.int64))
            blocks.append(scores.to("cpu"))
        names = tuple(self.bound)
        codes = torch.stack(columns, dim=1) if columns else torch.zeros((rows, 0), dtype=torch.int64)
        return Readings(names, codes, dict(zip(names, blocks, strict=True)))

    def _scores(self, name: str, bound: Bound, forward: _Forward, rows: int) -> Tensor | None:
        """Float32 [rows, parts], or None when some hook did not run or gave too few rows."""
        if any((name, place) not in forward.fired for place in self._places[name]):
            return None
        if name in self._means or bound.taus is None:
            every_TC = self._pooled(name, forward) if name in self._means else forward.shifted[name].unsqueeze(1)
            parts = list(every_TC.unbind(1))
            if forward.rows_R is not None:
                parts = [part.index_select(0, forward.rows_R) for part in parts]
        else:
            parts = [forward.scores[name, part] for part in range(len(bound.parts))]
        if any(part.shape[0] < rows for part in parts):
            return None
        return torch.stack([part[:rows] for part in parts], dim=1)

    def _pooled(self, name: str, forward: _Forward) -> Tensor:
        """A pooled guard's scores at every token, float32 [T, parts]."""
        found = forward.sequences
        assert found is not None
        return self._means[name].extend(
            forward.pooled[name], forward.positions_T, found.starts_S, found.slots_T, found.previous_S
        )


def _codes(scores_RC: Tensor, taus_C: Tensor | None) -> Tensor:
    """Reading per row: INVALID wherever any score is not finite, whatever the others say."""
    finite_R = torch.isfinite(scores_RC).all(dim=1)
    inside_R = (scores_RC <= taus_C).any(dim=1) if taus_C is not None else torch.zeros_like(finite_R)
    code = torch.where(inside_R, int(Reading.INSIDE), int(Reading.OUTSIDE))
    return torch.where(finite_R, code, int(Reading.INVALID))
