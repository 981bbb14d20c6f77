"""The table of docs/operating.md: what a request may ask for, and which engine honours it.

`python -m server.openai.option_table` writes it anew.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from server.engines.request import CALLS_TOOLS, HONOURED, Sampling, SamplingDefaults
from server.openai import ChatRequest, CompletionRequest
from server.openai.body import MAX_INT, Body
from server.openai.responses.request import ResponsesRequest

BEGIN = "<!-- options: written by `python -m server.openai.option_table` -->"
END = "<!-- end of options -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"

_OPTION_OF = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "top_logprobs": "logprobs",
    "include_stop_str_in_output": "include_stop",
    "response_format": "grammar",
    "text": "grammar",
    "include": "logprobs",
    "structured_outputs": "grammar",
}
"""Request fields that are called otherwise in Sampling."""
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_BUT = {("grammar", "transformers"): "yes, but what llguidance cannot keep"}
"""Options that an engine honours in part, and refuses by name for the rest."""
_ENDPOINTS: Mapping[str, type[Body]] = {"chat": ChatRequest, "text": CompletionRequest, "responses": ResponsesRequest}
_ENGINES = {"transformers": "embedded", "vllm": "vLLM"}


def rows() -> list[tuple[str, ...]]:
    """A row for each field: name, values at each endpoint, engines, and what holds where it is left out."""
    fields_of = [body.model_json_schema()["properties"] for body in _ENDPOINTS.values()]
    options = {each.name for each in fields(Sampling)}
    own = {each.name for each in fields(SamplingDefaults)}
    found = []
    for name in dict.fromkeys(name for of in fields_of for name in of):
        option = _OPTION_OF.get(name, name if name in options else None)
        engines = [
            _BUT.get((str(option), engine), "yes")
            if option in honoured or (option is None and (name not in _TOOLS or engine in CALLS_TOOLS))
            else "no"
            for engine, honoured in HONOURED.items()
        ]
        values = [_value(of[name]) if name in of else "-" for of in fields_of]
        found.append((f"`{name}`", *values, *engines, "the model's" if option in own else ""))
    return found


def table() -> str:
    """All rows as Markdown."""
    head = ("field", *_ENDPOINTS, *(f"{_ENGINES[engine]} engine" for engine in HONOURED), "default")
    lines = [head, ("---",) * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def written(page: str) -> str:
    """A page with the table of now between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _value(schema: Mapping[str, Any]) -> str:
    """What a field takes besides null, in a few words."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(map(_value, kinds))
    kind = kinds[0]
    match kind.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number":
            return _range(kind) or kind["type"]
        case "string":
            return "text"
        case "array":
            return (
                f"list: {_value(kind['items'])}" if "anyOf" not in kind["items"] else f"list: ({_value(kind['items'])})"
            )
        case "object" if "patternProperties" in kind:
            (value,) = kind["patternProperties"].values()
            return f"object: {_value(value)}"
        case "object" if isinstance(kind.get("additionalProperties"), dict):
            return f"object: {_value(kind['additionalProperties'])}"
        case _:
            return "object"


def _range(kind: Mapping[str, Any]) -> str:
    least, above, most = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    low = f"above {above}" if above is not None else "" if least is None or least < -MAX_INT else str(least)
    if most is None or most >= MAX_INT:
        return f"from {low}" if low else ""
    return f"{low} to {most}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
