"""What a request gives the chat template beside messages and tools."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from server.engines.base import EngineInfo
from server.engines.errors import UnsupportedOptionError
from server.openai.structure import object_text

_READ = frozenset({"reasoning_effort", "enable_thinking"})
"""By what names templates ask for effort."""


def _variables(value: object) -> object:
    """As they were given, once it is known that they are texts, numbers, lists and objects, and not nested too deep."""
    if value is not None:
        object_text(value)
    return value


Variables = Annotated[dict[str, Any] | None, BeforeValidator(_variables)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def template_variables(
    variables: Mapping[str, Any] | None, effort: Effort | None, info: EngineInfo, *, effort_field: str
) -> dict[str, Any]:
    """The variables of one conversation; effort becomes two of them, as in vLLM, where they are not given themselves.

    Raises UnsupportedOptionError for an effort that the model is not told of. None at all is what it makes anyway.
    """
    if effort not in (None, "none") and not _READ & info.template_names:
        raise UnsupportedOptionError(
            f"'{effort_field}': this model's chat template does not read it; leave it out.", effort_field
        )
    asked = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return {**asked, **(variables or {})}
