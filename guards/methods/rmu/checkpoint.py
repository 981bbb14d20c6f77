"""A training's state in one safetensors file, written in one step, which only the same training goes on from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from guards.artifact.exchange import replace_file
from guards.artifact.manifest import ModelIdentity
from guards.errors import DataError
from guards.methods.rmu.alpha import AlphaPolicy
from guards.methods.rmu.options import TrainingOptions
from guards.methods.rmu.training import Sides, Step, TrainingState

_FORMAT = "skillguard-training-1"
_FREE = frozenset({"steps", "max_rank", "kept", "checkpoint", "checkpoint_every", "batch_tokens", "progress", "frames"})
"""Options that no step so far depends on, files beside; frames are in the examples' digest, and `kept` bounds steps."""


def binding(
    identity: ModelIdentity,
    layers: tuple[int, ...],
    sides: Sides,
    options: TrainingOptions,
    files: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """All that a step depends on, each by a name, as text; `files` are the digests of those that options name."""
    named = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in _FREE}
    examples = hashlib.sha256(repr((tuple(sides.forget), tuple(sides.retain))).encode()).hexdigest()
    return {
        "variant": options.variant,
        "layers": str(layers),
        "examples": examples,
        "model": json.dumps(identity.model_dump(), sort_keys=True),
        **files,
        **{f"option {name}": str(value) for name, value in named.items() if not isinstance(value, Path)},
    }


def keep(file: Path, state: TrainingState, bound: Mapping[str, str]) -> None:
    """Writes the state. Raises DataError where the file cannot be written."""
    record = {"history": state.history, "policy": asdict(state.policy), "bound": dict(bound)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, save(tensors, {"format": _FORMAT, "training": json.dumps(record)}))
    except OSError as error:
        raise DataError(f"{file}: the training's state cannot be written ({error.strerror})") from error


def kept(file: Path, bound: Mapping[str, str], steps: int) -> TrainingState | None:
    """The state that a file holds of a training of so many `steps`, None where there is no file.

    Raises DataError for a file that is no training's state, that of another training, or one that went further.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{file}: got a file of format {metadata.get('format')!r}, wanted {_FORMAT}: {_ELSE}")
            record: dict[str, Any] = json.loads(metadata["training"])
            tensors: dict[str, torch.Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{file}: not a training's state ({error}): {_ELSE}") from error
    for name in sorted(bound.keys() | record["bound"].keys()):
        got, wanted = record["bound"].get(name), bound.get(name)
        if got != wanted:
            raise DataError(f"{file}: the state of another training: got {name} {got}, wanted {wanted}; {_ELSE}")
    if (made := len(record["history"])) > steps:
        raise DataError(
            f"{file}: got a state of {made} steps, wanted at most the {steps} of `steps`: a training does not go back; "
            f"give `steps` {made} or more, or {_ELSE}"
        )
    return TrainingState(tuple(Step(*step) for step in record["history"]), AlphaPolicy(**record["policy"]), tensors)


_ELSE = "name another `checkpoint`, or delete the file"
