"""Tools in a chat request: which there are, and whether the model calls them."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.tools import Tool, ToolChoice
from server.openai.body import Body, Listed, Text
from server.openai.invalid import conflict
from server.openai.structure import object_text
from server.openai.unsupported import IN_TOOL, Neutral

_NAME = re.compile("[a-zA-Z0-9_.-]{1,64}")
MAX_TOOLS = 128


def _function_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PydanticCustomError("function_name", "it should be 1 to 64 letters, digits, '_', '-' or '.'")
    return name


def _schema(parameters: object) -> object:
    """The schema as it was given, once it is known that it can be shown."""
    if parameters is not None:
        object_text(parameters)
    return parameters


FunctionName = Annotated[str, AfterValidator(_function_name)]


class FunctionBody(Body):
    """What a function is called, what it does and what it takes."""

    not_honoured: ClassVar[Neutral] = IN_TOOL

    name: FunctionName
    description: Text | None = None
    parameters: Annotated[dict[str, Any] | None, BeforeValidator(_schema)] = None
    strict: bool | None = None


class ToolBody(Body):
    """One tool. OpenAI's other kinds run on its own machines."""

    not_honoured: ClassVar[Neutral] = IN_TOOL

    type: Literal["function"]
    function: FunctionBody

    def to_engine(self) -> Tool:
        function = self.function
        return Tool(function.name, function.description, function.parameters, bool(function.strict))


class ChosenFunction(Body):
    """The function that must be called."""

    name: FunctionName


_WORDS = ("none", "auto", "required")


def _choice(value: object) -> object:
    """The words as objects; a union of both would report what is wrong with each branch."""
    if isinstance(value, dict) and value.get("type") not in _WORDS:
        return value
    if isinstance(value, str) and value in _WORDS:
        return {"type": value}
    raise PydanticCustomError(
        "tool_choice",
        'it should be "none", "auto", "required" or {"type": "function", "function": {"name": the name of a tool}}',
    )


class ChoiceBody(Body):
    """Who decides whether a tool is called."""

    type: Literal["none", "auto", "required", "function"]
    function: ChosenFunction | None = None

    @model_validator(mode="after")
    def _function_where_it_belongs(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise conflict("function", "'{field}' goes with 'type': 'function'.")
        return self

    def to_engine(self) -> ToolChoice | None:
        """None calls nothing."""
        if self.function is not None:
            return ToolChoice.NAMED
        return None if self.type == "none" else ToolChoice(self.type)


Choice = Annotated[
    ChoiceBody | None,
    BeforeValidator(
        lambda value: None if value is None else _choice(value),
        json_schema_input_type=Literal[_WORDS] | ChoiceBody | None,
    ),
]


Tools = Annotated[Listed[ToolBody], Field(max_length=MAX_TOOLS)]
