"""What a request says of its tools, however its endpoint spells that."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engines.base import EngineInfo
from server.engines.errors import UnsupportedOptionError
from server.engines.tools import Tool, ToolChoice, ToolUse
from server.openai.invalid import conflict


@dataclass(frozen=True)
class Calling:
    """The tools of a request and who decides whether they are called; `choice` is None where nothing is."""

    tools: tuple[Tool, ...]
    choice: ToolChoice | None = ToolChoice.AUTO
    name: str | None = None
    parallel: bool = True

    def require_sound(self, form_field: str | None) -> None:
        """For a model validator. `form_field`: the request's field, if any, that says what the answer must match."""
        if not self.tools:
            if self.choice not in (None, ToolChoice.AUTO):
                raise conflict("tool_choice", "'{field}' is only allowed together with 'tools'.")
            return
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "Two of the '{field}' have one name; give each its own.")
        if self.name is not None and self.name not in names:
            raise conflict("tool_choice", "'{field}' should name one of the 'tools'.")
        if self.choice is not None and form_field is not None:
            raise conflict(
                form_field,
                "'{field}' and 'tools' both say what the answer must match; send one of them, or "
                "'tool_choice': \"none\".",
            )

    def use(self, info: EngineInfo) -> ToolUse | None:
        """What may be called; None where nothing may, and then the model is shown no tools.

        Raises UnsupportedOptionError naming the field of the request that the engine does not honour.
        """
        if not self.tools:
            return None
        require_tools(self.tools, info)
        if self.choice is None:
            return None
        if self.choice not in info.tool_choices:
            raise UnsupportedOptionError(
                f"'tool_choice': got {self.choice.value}, which this server was not set up for; "
                f"wanted one of none, {', '.join(sorted(info.tool_choices))}.",
                "tool_choice",
            )
        return ToolUse(self.tools, self.choice, self.name, self.parallel)


def require_tools(tools: Sequence[Tool], info: EngineInfo) -> None:
    """Raises UnsupportedOptionError where the model could not be shown these."""
    if tools and not info.tool_choices:
        raise UnsupportedOptionError(f"The {info.engine} engine does not honour 'tools'; leave it out.", "tools")
