"""What the calibrations of all methods share: the result, its canaries, and how it is written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from tqdm import tqdm

from guards.artifact.canaries import SHIFT_SLACK
from guards.artifact.manifest import CalibrationRecord, Canary, Manifest, ModelIdentity, Name
from guards.artifact.store import refuse_folder, write_artifact
from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import Corpus
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import GuardKind, Reading
from guards.core.version import tool_name
from guards.errors import CalibrationError
from guards.model.encoding import CHAT_FRAME
from guards.model.shard import WHOLE
from guards.model.sites import Site

MAX_CANARIES = 16
CANARIES_PER_SIDE = 4
CANARY_TRIES = 200
CLEAR_INSIDE = 0.9
CLEAR_OUTSIDE = 1.1
"""A canary's smallest score over tau: far enough from 1 that another engine's rounding cannot turn it over."""

Advance = Callable[[int, str], None]
"""Told how many tokens are done, and of what step."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A finished guard with all that its artifact says about it."""

    method: Method
    guard: Guard
    identity: ModelIdentity
    record: CalibrationRecord
    canaries: tuple[Canary, ...]
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Time per step; never in the artifact, whose bytes depend on the input alone."""

    def save(self, folder: Path, skill: str) -> str:
        """Writes the artifact and returns its digest. Raises ArtifactError when the folder is something else."""
        parameters, tensors = self.method.dump(self.guard)
        manifest = Manifest(
            method=self.method.name,
            skill=skill,
            scope=self.guard.scope,
            model=self.identity,
            parameters=parameters,
            calibration=self.record,
            canaries=self.canaries,
            tensors_sha256="0" * 64,
        )
        return write_artifact(folder, manifest, tensors)


def refuse_output(folder: Path, skill: str) -> None:
    """Raises before any work when the artifact could not be written at the end.

    ArtifactError: `folder` is something else, or holds more. CalibrationError: the skill's name is not allowed
    in a manifest.
    """
    try:
        TypeAdapter(Name).validate_python(skill)
    except ValidationError as error:
        raise CalibrationError(
            f"got skill name {skill!r}, wanted 1 to 64 of A-Z a-z 0-9 _ . - starting with a letter or digit"
        ) from error
    refuse_folder(folder)


def make_record(
    model: Activations, frames: Sequence[str], corpora: Sequence[Corpus], notes: Sequence[str], **rates: Any
) -> CalibrationRecord:
    """The calibration record; `rates` are `recall` and `false_abstention`."""
    return CalibrationRecord(
        tool=tool_name(),
        frames=tuple(frames),
        template_sha256=model.codec.template_sha256 if CHAT_FRAME in frames else None,
        sources=tuple(record for corpus in corpora for record in corpus.records()),
        recall=rates.get("recall"),
        false_abstention=rates.get("false_abstention"),
        notes=tuple(notes),
    )


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Advance]:
    """A token counter with rate and time left on stderr; yields `advance(tokens, what)`."""
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not shown, dynamic_ncols=True) as bar:

        def advance(tokens: int, what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update(tokens)

        yield advance


class SidesFitter(Protocol):
    """Takes the tokens of both sides, layer by layer."""

    def update(self, layer: int, x_TF: Tensor, *, forget: bool) -> None: ...


def stream_sides(
    model: Activations,
    site: Site,
    fitter: SidesFitter,
    corpora: Sequence[Corpus],
    *,
    batch_tokens: int | None,
    advance: Advance,
) -> None:
    """One pass over both sides in every frame: the fitter sees all tokens of all layers."""
    for corpus in corpora:
        is_forget = corpus.role == "forget"

        def consume(layer: int, x_TF: Tensor, _: Tensor, is_forget: bool = is_forget) -> None:
            fitter.update(layer, x_TF, forget=is_forget)

        for examples in corpus.encoded.values():
            wanted = Pass(site, tuple(range(model.identity.layers)), Tokens.ALL, batch_tokens=batch_tokens)
            model.stream(wanted, examples, consume, lambda tokens: advance(tokens, "fit"))


def left_out_warnings(model: Activations, corpora: Sequence[Corpus]) -> list[str]:
    """One for each side that has examples longer than the model's context."""
    return [
        f"{corpus.left_out} {corpus.role} example(s) were left out: longer than the model's {model.max_tokens} tokens"
        for corpus in corpora
        if corpus.left_out
    ]


def _clear(reading: Reading, scores: tuple[float, ...], taus: Sequence[float]) -> bool | None:
    """Whether the guard clearly fires (True), clearly does not (False), or stands too near the line (None).

    An intervention is only ever clear when it shifts more neurons than may differ between engines: a prompt that
    shifts none could shift one elsewhere.
    """
    if reading not in (Reading.INSIDE, Reading.OUTSIDE):
        raise CalibrationError(f"the finished guard gives no finite reading ({reading.name}) on a calibration prompt")
    if not taus:
        return True if scores[0] > SHIFT_SLACK else None
    ratio = min(score / tau for score, tau in zip(scores, taus, strict=True))
    if ratio <= CLEAR_INSIDE:
        return True
    return False if ratio >= CLEAR_OUTSIDE else None


def choose_canaries(
    model: Activations, method: Method, guard: Guard, forget: Corpus, retain: Corpus, frames: Sequence[str]
) -> tuple[Canary, ...]:
    """Short prompts of both sides in every frame, read one at a time as a server reads them.

    Forget prompts that clearly fire and retain prompts that clearly do not (for an intervention: prompts of both sides
    that clearly are shifted). Raises CalibrationError when a side has none.
    """
    detector = method.kind is GuardKind.DETECTOR
    quota = max(1, min(CANARIES_PER_SIDE, MAX_CANARIES // (2 * len(frames))))
    found: list[Canary] = []
    taus = method.bind(guard, torch.device("cpu"), WHOLE).taus
    with model.reading(method, guard) as read:
        for corpus, wanted in ((forget, True), (retain, not detector)):
            side = 0
            for frame in frames[: MAX_CANARIES // 2]:
                taken = 0
                for ids in sorted(set(corpus.encoded[frame]), key=lambda ids: (len(ids), ids))[:CANARY_TRIES]:
                    reading, scores = read(ids)
                    if _clear(reading, scores, taus) is wanted:
                        found.append(Canary(token_ids=ids, scores=scores, fires=wanted))
                        taken += 1
                    if taken == quota:
                        break
                side += taken
            if not side:
                does = "clearly fires" if wanted else "is clear of"
                instead = "another --layer, --recall or --scope" if detector else "a larger --fraction"
                raise CalibrationError(
                    f"none of the {CANARY_TRIES} shortest {corpus.role} prompts {does} the guard at its last token, so "
                    f"no server could verify it at start: give more examples, or {instead}"
                )
    return tuple(found)
