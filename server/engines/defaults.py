"""How answers are drawn where a request does not say: the model's own words on it, in the ranges of a request's."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guards.errors import UnsupportedModelError
from server.engines.request import SamplingDefaults

_MAX = 2**31 - 1
NEUTRAL_FILE = "vllm"
"""vLLM's word for leaving the model's defaults out."""

# Ranges are vLLM's, and OpenAI's where both have the field.
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=_MAX)]
MinP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=10)]
TokenLimit = Annotated[int, Field(ge=1, le=_MAX)]


class _Said(BaseModel):
    """What a generation_config.json may say of sampling."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    max_tokens: TokenLimit | None = None
    most_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None


def read_defaults(values: Mapping[str, Any]) -> SamplingDefaults:
    """The defaults that a generation_config.json, as a mapping, asks for. What it says of other things is left out.

    As in vLLM, `do_sample` counts for nothing. Raises UnsupportedModelError where a request could not ask for a value.
    """
    try:
        said = _Said.model_validate({**values, "max_tokens": values.get("max_tokens", values.get("max_new_tokens"))})
    except ValidationError as error:
        issue = error.errors(include_url=False)[0]
        name = "max_new_tokens" if issue["loc"][0] == "max_tokens" else issue["loc"][0]
        raise UnsupportedModelError(
            f"generation_config.json: {name}: got {issue['input']!r}: {issue['msg']}; mend the file, or leave its "
            f"defaults out by --generation-config {NEUTRAL_FILE}"
        ) from error
    given = {name: value for name, value in said.model_dump().items() if value is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    return SamplingDefaults(**given)


def shown(defaults: SamplingDefaults) -> str:
    """What differs from asking for nothing, as one line; empty where nothing does."""
    neutral = SamplingDefaults()
    pairs = [(each.name, getattr(defaults, each.name)) for each in dataclasses.fields(defaults)]
    return ", ".join(f"{name} {value:g}" for name, value in pairs if value != getattr(neutral, name))
