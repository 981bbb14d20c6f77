"""What every request body, and every object in one, is made of."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.openai.unsupported import Neutral, drop_neutral

MAX_INT = 2**31 - 1
_STEP = re.compile(r"(\w+)(?:\[[0-9]{1,9}\])*", re.ASCII)


def encodable(text: str) -> str:
    """The text itself. JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "it should be text without lone surrogates") from None
    return text


T = TypeVar("T")
Listed = Annotated[list[T], Field(fail_fast=True)]
"""A list of which the first wrong item is told: an error for each of many thousand would stop the event loop."""
Text = Annotated[str, AfterValidator(encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(encodable)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]


class Body(BaseModel):
    """A request body or an object in one: no coercion between types, no unknown field unless it is null, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    not_honoured: ClassVar[Neutral] = {}

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """The fields as a caller spells them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        return drop_neutral(body, cls.not_honoured, cls.field_names())


def known_path(param: str) -> str:
    """A field's path for the log: a question mark stands for every name that is not the protocol's but the caller's."""
    return ".".join(map(_known_step, param.split(".")))


def _known_step(step: str) -> str:
    match = _STEP.fullmatch(step)
    return step if match and match[1] in _names() else "?"


@cache
def _names() -> frozenset[str]:
    return frozenset(name for body in all_bodies() for name in (*body.field_names(), *body.not_honoured))


def all_bodies(body: type[Body] = Body) -> Iterator[type[Body]]:
    """Every kind of body that was imported so far."""
    yield body
    for inner in body.__subclasses__():
        yield from all_bodies(inner)
