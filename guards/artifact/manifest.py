"""What manifest.json says: every record of an artifact, strict."""

import math
import re
import struct
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from guards.core.quantiles import LEVELS
from guards.core.verdict import Scope

FORMAT_VERSION = 1


UNSEALED = "0" * 64


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Count = Annotated[int, Field(ge=0)]


Proportion = Annotated[float, Field(ge=0, le=1)]


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Of a skill, and of a guard's folder; to be matched fully."""

Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


SMALLEST = 2.0**-126
"""What is nearer to zero may be zero on a device that does not keep subnormal numbers."""


def in_float32(value: float) -> float:
    """The number that a guard computes with. Raises ValueError where that is no finite number, or becomes zero."""
    single: float
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        single = math.inf
    if not math.isfinite(single) or (value != 0 and abs(single) < SMALLEST):
        raise ValueError(f"is {single:g} in float32, wanted 0 or a number of at least {SMALLEST:.3g} and finite there")
    return single


def _kept(value: float) -> float:
    in_float32(value)
    return value


def _positive(value: float) -> float:
    if not in_float32(value) > 0:
        raise ValueError("wanted a number above 0")
    return value


def _below_one(value: float) -> float:
    if not in_float32(value) < 1:
        raise ValueError("is 1 in float32, wanted a number below")
    return value


Float32 = Annotated[float, AfterValidator(_kept)]
"""A number that guards compute with, in float32: finite there, and not zero unless it is zero."""

PositiveFloat32 = Annotated[float, AfterValidator(_positive)]

BetweenFloat32 = Annotated[float, AfterValidator(_positive), AfterValidator(_below_one)]
"""Between 0 and 1, neither of them, in float32."""


class Strict(BaseModel):
    """A frozen record that refuses unknown keys, coerced types and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelIdentity(Strict):
    """The model a guard was calibrated on. All that is set must agree with the model that is served."""

    architecture: str
    layers: Annotated[int, Field(ge=1)]
    d_model: Annotated[int, Field(ge=1)]
    d_ff: Annotated[int, Field(ge=0)]
    """0 where no layer has a single key vector, as in mixtures of experts."""
    dtype: Literal["float32", "bfloat16", "float16"]
    tokenizer_sha256: Sha256 | None
    """Digest of the tokenizer's files: other token ids for the same text would pass by every canary."""
    weights_sha256: Sha256 | None
    """Digest of the weight files (`identity.py`); None for an imported artifact not yet bound to a model."""
    quantization: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")] | None = None
    """The engine's name for how it quantises the linear layers, None for unquantised ones. Not written when None."""


class Rate(Strict):
    """A proportion with its two-sided 95 % Clopper-Pearson interval."""

    hits: Count
    total: Count
    rate: Proportion
    low: Proportion
    high: Proportion


class SourceRecord(Strict):
    """One data source that calibration read.

    `field`: where the texts were. `rows` had a text, of which `repeats` were there before; `cut` texts were shortened.
    Not written when None.
    """

    role: Literal["forget", "retain"]
    name: str
    sha256: Sha256
    examples: Count
    tokens: Count
    field: str | None = None
    rows: Count | None = None
    repeats: Count | None = None
    cut: Count | None = None

    @property
    def line(self) -> str:
        """What was read, for a person."""
        line = f"{self.name}: {self.examples} examples"
        if self.rows is not None:
            line += f" of {self.rows} rows, {self.repeats} of them repeats, in field {self.field}"
        return f"{line}, {self.cut} cut to what fits" if self.cut else line


class ScoreQuantiles(Strict):
    """How retain prompts of the report part score, so that a server can say how common a score is.

    `over_tau`: the score over tau at the last prompt token, of the part where that is smallest among those that judge
    prompts; its quantiles at `guards.core.quantiles.LEVELS`, of so many `examples`.
    """

    examples: Annotated[int, Field(ge=1)]
    over_tau: Annotated[tuple[float, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.over_tau) != sorted(self.over_tau):
            raise ValueError("got quantiles that fall, wanted them ascending")
        return self


class CalibrationRecord(Strict):
    """How a guard came to be, for whoever has to trust it."""

    tool: str
    frames: tuple[str, ...]
    """Prompt frames in the order they were fitted: "chat", "bare", or a template holding {text}."""
    template_sha256: Sha256 | None
    """Digest of the chat template when "chat" is among the frames."""
    sources: tuple[SourceRecord, ...]
    recall: Rate | None
    """Held-out forget examples on which the guard fires; of several frames, in the one where it is lowest."""
    false_abstention: Rate | None
    """Held-out retain examples on which the guard fires; of several frames, in the one where it is highest."""
    notes: tuple[str, ...] = ()
    quantiles: ScoreQuantiles | None = None
    """None where calibration measured none. Not written when None."""
    seed: int | None = None
    """By which examples were dealt, where a later calibration may have to deal them alike. Not written when None."""


class CanaryMessage(Strict):
    """One message of a canary, as the chat template takes it."""

    role: str
    content: str


CanarySource = tuple[CanaryMessage, ...] | str
"""What a canary's token ids are encoded from: a conversation in the chat template, or another frame's whole text."""


class Canary(Strict):
    """A prompt whose readings are known. At start the live engine must give them again.

    `scores` holds, for a detector, one score per part (cube) at the last prompt token; for an intervention the
    number of neurons shifted there. `fires` says whether the guard acts on this prompt.

    `messages` or `text` is its source: the live template and tokenizer must give the same ids. Not written when None.
    """

    token_ids: tuple[Count, ...] = Field(min_length=1)
    scores: tuple[float, ...] = Field(min_length=1)
    fires: bool
    messages: Annotated[tuple[CanaryMessage, ...], Field(min_length=1)] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.messages is not None and self.text is not None:
            raise ValueError("got messages and text, wanted at most one of them")
        return self

    @property
    def source(self) -> CanarySource | None:
        """None where nothing says it."""
        return self.text if self.messages is None else self.messages


class Manifest(Strict):
    """The whole of `manifest.json`. `parameters` is the method's own record, validated by its loader."""

    format: Literal["skillguard-artifact"] = "skillguard-artifact"
    version: Literal[1] = 1
    method: str
    skill: Name
    scope: Scope = Field(strict=False)
    model: ModelIdentity
    parameters: dict[str, Any]
    calibration: CalibrationRecord
    canaries: tuple[Canary, ...]
    tensors_sha256: Sha256
    manifest_sha256: Sha256 = UNSEALED
    """Digest of this file with this value written as 64 zeros. Filled in by the writer, as is the one above."""


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as "where: what (got ...)"."""
    issue = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in issue["loc"]) or "the top level"
    return f"{where}: {issue['msg']} (got {str(issue['input'])[:80]!r})"
