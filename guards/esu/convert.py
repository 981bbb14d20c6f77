"""Makes artifacts of ESU's published files, and binds them to a model with canaries so that they can be served."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from guards.artifact.manifest import CalibrationRecord, ModelIdentity
from guards.calibration.activations import Activations
from guards.calibration.canary_choice import choose_canaries
from guards.calibration.corpus import encode_corpora
from guards.calibration.finished import Calibration, make_record
from guards.calibration.sources import Source
from guards.calibration.statistics import floor_sigma
from guards.core.version import tool_name
from guards.errors import ArtifactError, ArtifactMismatchError
from guards.esu.files import LLAMA_3_8B, PUBLISHED, EsuFile, cubes, gaussians
from guards.methods.cube.guard import CubeGuard, Regime
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustGuard
from guards.methods.registry import CUBE, NEURON_ADJUST
from guards.model.frames import BARE_FRAME, check_frame

SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a file leaves open.

    `kind`: "auto", or the method that the file must hold. `alpha` scales a cube: raising it forgets more and costs
    other prompts. `regime`: which tokens a cube was fitted on. `frame`: what surrounded the texts it was fitted on.
    None takes the authors' for a skill that the file's name tells; a frame is else "bare".
    """

    kind: str = "auto"
    alpha: float | None = None
    regime: str | None = None
    frame: str | None = None


def fewest_vectors(k: float) -> int:
    """The smallest n with ``k <= (n - 1) / sqrt(n)``: no fewer vectors can have given this k."""
    root = (k + math.sqrt(k * k + 4)) / 2
    return math.ceil(root * root * (1 - 1e-12))


def _frame(file: EsuFile, options: ImportOptions) -> str:
    if options.frame is not None:
        return check_frame(options.frame)
    published = PUBLISHED.get(file.skill or "") if file.kind == "ksd" else None
    return published.frame if published else BARE_FRAME


def _import_cubes(file: EsuFile, options: ImportOptions, identity: ModelIdentity) -> tuple[CubeGuard, list[str]]:
    published = PUBLISHED.get(file.skill or "")
    alpha, regime, notes = options.alpha, options.regime, []
    if published is not None:
        alpha = published.alpha if alpha is None else alpha
        regime = published.regime if regime is None else regime
        notes = [f"fitted by the authors on {published.texts}"]
    if alpha is None or regime is None:
        raise ArtifactError(
            f"{file.name}: the name tells none of the published skills ({', '.join(sorted(PUBLISHED))}): "
            "give `alpha` and `regime`"
        )
    guard = cubes(file, alpha, Regime(regime), _frame(file, options), identity)
    notes += [
        f"tau = alpha * k with alpha {alpha:g}; k as stored, since the vectors were not published",
        *(
            f"layer {cube.layer}: k {cube.k:.6g} needs at least {fewest_vectors(cube.k)} vectors; "
            f"{floor_sigma(cube.std_F)[1]} deviation(s) below a calibration's floor, kept as published"
            for cube in guard.cubes
        ),
    ]
    return guard, notes


def _import_gaussians(
    file: EsuFile, options: ImportOptions, identity: ModelIdentity
) -> tuple[NeuronAdjustGuard, list[str]]:
    if options.alpha is not None or options.regime is not None:
        raise ArtifactError(f"{file.name}: holds Neuron Adjust, which has no `alpha` and no `regime`")
    guard = gaussians(file, Draw.RANDOM, SEED, identity)
    forget = torch.cat([layer.forget_mean_S for layer in guard.layers_statistics.values()])
    notes = [
        f"{forget.numel()} neurons; stored sigmas are variances (E[x^2] - E[x]^2), their square roots are used here",
        f"{int((forget < 0).sum())} of them have a negative forget mean: the authors' code takes that for the "
        "deviation and never moves them, this guard does",
    ]
    return guard, notes


def import_esu(file: EsuFile, options: ImportOptions, identity: ModelIdentity = LLAMA_3_8B) -> Calibration:
    """A guard for the model that the file was made on, not yet bound to weights and without canaries.

    Raises ArtifactError when the file does not fit, or leaves open what `options` does not say.
    """
    if options.kind not in ("auto", file.kind):
        raise ArtifactError(f"{file.name}: got a {file.kind} file, wanted {options.kind}")
    convert = _import_cubes if file.kind == "ksd" else _import_gaussians
    guard, notes = convert(file, options, identity)
    record = CalibrationRecord(
        tool=tool_name(),
        frames=(_frame(file, options),),
        template_sha256=None,
        sources=(),
        recall=None,
        false_abstention=None,
        notes=(
            f"converted from {file.name} (SHA-256 {file.sha256}) of Effective Skill Unlearning (NAACL 2025)",
            *notes,
            "recall and false abstentions were not measured: evaluate before relying on it",
        ),
    )
    return Calibration(
        method=CUBE if file.kind == CUBE.name else NEURON_ADJUST,
        guard=guard,
        identity=identity,
        record=record,
        canaries=(),
        warnings=tuple(notes),
    )


def bind(imported: Calibration, model: Activations, forget: Sequence[Source], retain: Sequence[Source]) -> Calibration:
    """The same guard bound to a model's weights, with canaries read through that model.

    Raises ArtifactMismatchError when the model is not of the shape, architecture and dtype that the guard is for, and
    CalibrationError when the examples give no clear canary.
    """
    wanted, got = imported.identity.model_dump(), model.identity.model_dump()
    wrong = [
        f"{key}: model has {got[key]!r}, file wants {value!r}"
        for key, value in wanted.items()
        if not key.endswith("_sha256") and got[key] != value
    ]
    if wrong:
        raise ArtifactMismatchError(f"the file was made on another model ({'; '.join(wrong)})")
    frames = imported.record.frames
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    canaries = choose_canaries(model, imported.method, imported.guard, *corpora, frames)
    notes = (*imported.record.notes, "the sources gave the canaries only; nothing was fitted on them")
    return replace(
        imported,
        identity=model.identity,
        record=make_record(model, frames, corpora, notes),
        canaries=canaries,
    )
