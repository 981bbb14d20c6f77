"""The objects in a request: the form of the text, functions, and what else a caller may ask for."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.request import Grammar, GrammarKind
from server.engines.tools import Tool, ToolChoice
from server.openai.body import Body, Listed, NonEmptyText, Text
from server.openai.invalid import conflict
from server.openai.structure import object_text
from server.openai.template import Effort
from server.openai.tools import MAX_TOOLS, FunctionBody, FunctionName
from server.openai.unsupported import (
    IN_REASONING,
    IN_RESPONSES_STREAM_OPTIONS,
    IN_RESPONSES_TOOL,
    IN_TEXT_OPTIONS,
    Neutral,
)


def _schema(given: object) -> str | None:
    return None if given is None else object_text(given)


class TextFormat(Body):
    """OpenAI's way to ask for JSON. An answer matches a schema in full whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"]
    name: NonEmptyText | None = None
    schema_text: Annotated[str | None, BeforeValidator(_schema, json_schema_input_type=dict[str, Any] | None)] = Field(
        None, alias="schema"
    )
    description: Text | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        for field, given in {"name": self.name, "schema": self.schema_text}.items():
            if (self.type == "json_schema") != (given is not None):
                raise conflict(field, "'{field}' goes with 'type': 'json_schema', and with no other type.")
        return self

    def to_engine(self) -> Grammar | None:
        """None for plain text, which is what happens anyway."""
        if self.schema_text is not None:
            return Grammar(GrammarKind.JSON_SCHEMA, self.schema_text)
        return Grammar(GrammarKind.JSON_OBJECT) if self.type == "json_object" else None

    def shown(self) -> dict[str, object]:
        """As a response repeats it."""
        if self.schema_text is None:
            return {"type": self.type}
        schema = json.loads(self.schema_text)
        named = {"type": self.type, "name": self.name, "schema": schema, "strict": self.strict}
        return named if self.description is None else {**named, "description": self.description}


class TextOptions(Body):
    """What the text should be like."""

    not_honoured: ClassVar[Neutral] = IN_TEXT_OPTIONS

    format: TextFormat | None = None


class Reasoning(Body):
    """How a model should think."""

    not_honoured: ClassVar[Neutral] = IN_REASONING

    effort: Effort | None = None


class ResponsesStreamOptions(Body):
    """Options of a stream. Its last event has the token counts, whatever they say."""

    not_honoured: ClassVar[Neutral] = IN_RESPONSES_STREAM_OPTIONS


class FunctionTool(FunctionBody):
    """One function. OpenAI's other kinds of tools run on its own machines."""

    not_honoured: ClassVar[Neutral] = IN_RESPONSES_TOOL

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, said: Any) -> Any:
        if isinstance(said, dict) and said.get("type", "function") != "function":
            raise conflict("type", "'{field}' should be 'function': OpenAI's other tools run on its own machines.")
        return said

    def to_engine(self) -> Tool:
        return Tool(self.name, self.description, self.parameters, bool(self.strict))

    def shown(self) -> dict[str, object]:
        """As a response repeats it."""
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class ToolChoiceBody(Body):
    """Who decides whether a function is called."""

    type: Literal["none", "auto", "required", "function"]
    name: FunctionName | None = None

    @model_validator(mode="after")
    def _name_where_it_belongs(self) -> Self:
        if (self.type == "function") != (self.name is not None):
            raise conflict("name", "'{field}' goes with 'type': 'function'.")
        return self

    def to_engine(self) -> ToolChoice | None:
        """None calls nothing."""
        if self.name is not None:
            return ToolChoice.NAMED
        return None if self.type == "none" else ToolChoice(self.type)

    def shown(self) -> object:
        """As a response repeats it."""
        return self.type if self.name is None else {"type": self.type, "name": self.name}


_WORDS = ("none", "auto", "required")


def _choice(given: Any) -> object:
    """The words as objects; a union of both would report what is wrong with each branch."""
    if given is None or (isinstance(given, dict) and given.get("type") == "function"):
        return given
    if isinstance(given, str) and given in _WORDS:
        return {"type": given}
    raise PydanticCustomError(
        "tool_choice", 'it should be "none", "auto", "required" or {"type": "function", "name": the name of a tool}'
    )


FunctionTools = Annotated[Listed[FunctionTool], Field(max_length=MAX_TOOLS)]
Choice = Annotated[
    ToolChoiceBody | None,
    BeforeValidator(_choice, json_schema_input_type=Literal[_WORDS] | ToolChoiceBody | None),
]

LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "message.output_text.logprobs",
    # parts of items that no answer here has
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
