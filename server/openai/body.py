"""What every request body, and every object in one, is made of."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.openai.unsupported import Neutral, drop_neutral

MAX_INT = 2**31 - 1


def encodable(text: str) -> str:
    """The text itself. JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "it should be text without lone surrogates") from None
    return text


Text = Annotated[str, AfterValidator(encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(encodable)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]


class Body(BaseModel):
    """A request body or an object in one: no coercion between types, no unknown field, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    not_honoured: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        return drop_neutral(body, cls.not_honoured)
