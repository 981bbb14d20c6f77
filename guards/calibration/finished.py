"""A finished calibration, what its artifact records of it, and where it may be written."""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from guards.artifact.manifest import (
    CalibrationRecord,
    Canary,
    Manifest,
    ModelIdentity,
    Name,
    Rate,
    ScoreQuantiles,
)
from guards.artifact.store import refuse_folder, write_artifact
from guards.calibration.activations import Activations
from guards.calibration.canary_choice import choose_canaries
from guards.calibration.corpus import Corpus
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.quantiles import quantile_table
from guards.core.version import tool_name
from guards.errors import ArtifactError, CalibrationError
from guards.model.frames import CHAT_FRAME


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
    """Time per step; never in the artifact. On a CPU its bytes depend on the input and the number of threads alone; on
    CUDA sums add up in any order, so that last digits, and with them the digest, may differ from run to run.
    """

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


Finished = TypeVar("Finished", bound=Calibration)


def refuse_output(folder: Path, skill: str) -> None:
    """Raises before any work when the artifact could not be written at the end.

    ArtifactError: `folder` is something else, or holds something more.
    CalibrationError: the skill's name is not allowed in a manifest.
    """
    try:
        TypeAdapter(Name).validate_python(skill)
    except ValidationError as error:
        raise CalibrationError(
            f"got skill name {skill!r}, wanted 1 to 64 of A-Z a-z 0-9 _ . - starting with a letter or digit"
        ) from error
    refuse_folder(folder)


@contextmanager
def held_output(folder: Path) -> Iterator[None]:
    """Makes the folder one calibration's, until its artifact and report lie there, by a lock file beside it.

    Raises ArtifactError where another one has it, or none can be written there.
    """
    folder = folder.resolve()
    lock = folder.with_name(f".{folder.name}-lock")
    with ExitStack() as stack:
        held = False
        while not held:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(lock.open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):  # another one has just ended, and removed the file that is open here
                    held = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except BlockingIOError as error:
                raise ArtifactError(
                    f"{folder}: another calibration is writing there; wait for it, or choose another output folder"
                ) from error
            except OSError as error:
                raise ArtifactError(f"{lock}: cannot be written ({error.strerror}); choose another output") from error
        stack.callback(lock.unlink, missing_ok=True)  # before it is let go
        yield


def make_record(
    model: Activations,
    frames: Sequence[str],
    corpora: Sequence[Corpus],
    notes: Sequence[str],
    *,
    recall: Rate | None = None,
    false_abstention: Rate | None = None,
    quantiles: ScoreQuantiles | None = None,
    seed: int | None = None,
) -> CalibrationRecord:
    """The calibration record; the rates are those of held-out examples, None where none were measured."""
    return CalibrationRecord(
        tool=tool_name(),
        frames=tuple(frames),
        template_sha256=model.codec.chat.sha256 if CHAT_FRAME in frames else None,
        sources=tuple(record for corpus in corpora for record in corpus.records()),
        recall=recall,
        false_abstention=false_abstention,
        notes=tuple(notes),
        quantiles=quantiles,
        seed=seed,
    )


class Clock:
    """Seconds of a calibration's steps, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def step(self, name: str) -> None:
        """The time since the last step was this one's."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now


def finish(
    kind: type[Finished],
    method: Method,
    guard: Guard,
    model: Activations,
    frames: Sequence[str],
    corpora: Sequence[Corpus],
    clock: Clock,
    /,
    *,
    notes: Sequence[str],
    warnings: Sequence[str],
    rates: tuple[Rate | None, Rate | None] = (None, None),
    prompt_ratios: Sequence[float] = (),
    seed: int | None = None,
    **figures: Any,
) -> Finished:
    """The calibration of a fitted guard: canaries are read on the model, and the record is made.

    `rates` are recall and false abstention of held-out examples. `prompt_ratios`: the score over tau of each retain
    prompt of the report part, as `ScoreQuantiles` has it; none where that was not measured. `seed`: by which examples
    were dealt, of a guard that others may start from. `figures` are the fields that `kind` has of its own.
    Raises CalibrationError where no prompt can be a canary.
    """
    forget, retain = corpora
    canaries = choose_canaries(model, method, guard, forget, retain, frames)
    clock.step("canaries")
    return kind(
        method=method,
        guard=guard,
        identity=model.identity,
        record=make_record(
            model,
            frames,
            corpora,
            [*notes, *warnings],
            recall=rates[0],
            false_abstention=rates[1],
            quantiles=_quantiles(prompt_ratios),
            seed=seed,
        ),
        canaries=canaries,
        warnings=tuple(warnings),
        seconds=clock.seconds,
        **figures,
    )


def _quantiles(ratios: Sequence[float]) -> ScoreQuantiles | None:
    return ScoreQuantiles(examples=len(ratios), over_tau=quantile_table(ratios)) if ratios else None
