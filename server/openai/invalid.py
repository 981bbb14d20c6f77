"""Turns pydantic's findings into one message for the caller: which field, what is wrong, what was sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from guards.errors import SkillguardError
from server.engines.errors import UnsupportedOptionError
from server.errors import InvalidRequestError

_SHOWN_CHARACTERS = 40
_CONFLICT = "skillguard_conflict"
_REFUSED_OPTION = "skillguard_refused_option"


def conflict(field: str, message: str) -> PydanticCustomError:
    """For a model validator: fields that do not go together. `message` is a whole sentence; {field} is filled in."""
    return PydanticCustomError(_CONFLICT, message, {"field": field})


def refused_option(field: str, message: str) -> PydanticCustomError:
    """For a model validator: a field whose meaning is known and not honoured."""
    return PydanticCustomError(_REFUSED_OPTION, message, {"field": field})


def invalid_request(findings: Sequence[Mapping[str, Any]]) -> SkillguardError:
    """The first finding as an error; callers mend one thing at a time."""
    finding = findings[0]
    param = _param(finding["loc"])
    match finding["type"]:
        case kind if kind == _CONFLICT:
            return InvalidRequestError(finding["msg"], _param([*finding["loc"], finding["ctx"]["field"]]))
        case kind if kind == _REFUSED_OPTION:
            param = _param([*finding["loc"], finding["ctx"]["field"]])
            assert param is not None
            return UnsupportedOptionError(finding["msg"], param)
        case "json_invalid":
            return InvalidRequestError(f"The body is not valid JSON: {finding['ctx']['error']}.")
        case "missing" if param is None:
            return InvalidRequestError("The body is empty; send a JSON object.")
        case "missing":
            return InvalidRequestError(f"{param!r} is missing.", param)
        case "extra_forbidden":
            return InvalidRequestError(f"{param!r} is not a field of this request; leave it out.", param)
        case "model_type" | "model_attributes_type" | "dict_type":
            wanted = "it should be an object"
        case "too_short" | "too_long" as kind:
            bound, name = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
            count = finding["ctx"][name]
            wanted = f"it should have at {bound} {count} {'item' if count == 1 else 'items'}"
        case _:
            wanted = finding["msg"].rstrip(".").replace("Input should", "it should")
    place = repr(param) if param else "The body"
    return InvalidRequestError(f"{place}: {wanted}; got {_describe(finding['input'])}.", param)


def _param(location: Sequence[str | int]) -> str | None:
    """OpenAI's notation: messages[0].content."""
    parts = list(location)
    if parts[:1] in (["body"], ["query"]):
        parts = parts[1:]
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{_cut(part)}" if path else _cut(part)
    return path or None


def _cut(name: str) -> str:
    """A name may be the caller's, and as long as the body."""
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."


def _describe(value: object) -> str:
    """The value as the caller sent it, cut short; by its kind where it is long or nested."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list() | tuple():
            return f"a list of {len(value)}"
        case str() if len(value) > _SHOWN_CHARACTERS:
            return f"a string of {len(value)} characters"
        case str():
            return f"the string {value!a}"
        case int() if value.bit_length() > 64:
            return "a larger integer"
        case _:
            return ascii(value)[:_SHOWN_CHARACTERS]
