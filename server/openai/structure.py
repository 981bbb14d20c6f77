"""What an answer must match: OpenAI's `response_format` and vLLM's `structured_outputs`, each as one Grammar.

Whether a schema, pattern or grammar can be compiled is the engine's to say: it knows the dialect.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.request import Grammar, GrammarKind
from server.openai.body import Body, Listed, NonEmptyText, Text, encodable
from server.openai.invalid import conflict
from server.openai.unsupported import IN_STRUCTURED_OUTPUTS, Neutral

_MAX_NESTING = 64
"""Levels of JSON in a schema; what compiles it may recurse."""


def _nested_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nested_deeper(each, levels - 1) for each in inner)


def object_text(schema: object) -> str:
    """A schema, or any object, that came parsed: as JSON text. Raises where it cannot be worked with."""
    if not isinstance(schema, dict):
        raise PydanticCustomError("json_schema", "it should be an object, a JSON schema")
    if _nested_deeper(schema, _MAX_NESTING):
        raise PydanticCustomError("json_schema", f"it should be nested at most {_MAX_NESTING} levels deep")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("json_schema", "it should hold finite numbers only") from None
    return encodable(text)


def _parsed_schema_text(schema: object) -> str:
    """vLLM takes the schema as JSON text too."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise PydanticCustomError("json_schema", "it should be an object, or an object as JSON text") from None
    return object_text(schema)


class JsonSchema(Body):
    """OpenAI's wrapper of a schema. An answer matches in full whatever `strict` says.

    `name` and `description` are labels that SDKs send with every schema; nothing of them is shown to the model.
    """

    name: NonEmptyText
    schema_text: Annotated[str, BeforeValidator(object_text, json_schema_input_type=dict[str, Any])] = Field(
        alias="schema"
    )
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise conflict("json_schema", "'{field}' goes with 'type': 'json_schema', and with no other type.")
        return self

    def to_engine(self) -> Grammar | None:
        """None for plain text, which is what happens anyway."""
        if self.json_schema is not None:
            return Grammar(GrammarKind.JSON_SCHEMA, self.json_schema.schema_text)
        return Grammar(GrammarKind.JSON_OBJECT) if self.type == "json_object" else None


class StructuredOutputs(Body):
    """vLLM's way to ask for anything that a grammar can say."""

    not_honoured: ClassVar[Neutral] = IN_STRUCTURED_OUTPUTS

    schema_text: (
        Annotated[str, BeforeValidator(_parsed_schema_text, json_schema_input_type=str | dict[str, Any])] | None
    ) = Field(None, alias="json")
    regex: NonEmptyText | None = None
    choice: Annotated[Listed[NonEmptyText], Field(min_length=1)] | None = None
    grammar: NonEmptyText | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._given()) != 1:
            raise PydanticCustomError(
                "structured_outputs",
                "it should hold exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object': true",
            )
        return self

    def to_engine(self) -> Grammar:
        (grammar,) = self._given()
        return grammar

    def _given(self) -> list[Grammar]:
        texts = {
            GrammarKind.JSON_SCHEMA: self.schema_text,
            GrammarKind.REGEX: self.regex,
            GrammarKind.CHOICE: None if self.choice is None else json.dumps(self.choice, ensure_ascii=False),
            GrammarKind.EBNF: self.grammar,
            GrammarKind.JSON_OBJECT: "" if self.json_object else None,
        }
        return [Grammar(kind, text) for kind, text in texts.items() if text is not None]
