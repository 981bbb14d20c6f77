"""Messages and tools in the words of chat templates, which are transformers'."""

import json
from typing import Any

from server.engines.request import Message
from server.engines.tools import Tool


def template_message(message: Message) -> dict[str, Any]:
    """A message; calls' arguments as objects, since templates look into them."""
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def template_tool(tool: Tool) -> dict[str, Any]:
    """A tool, with what was said of it and nothing more. `strict` is about the answer, not for the model."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}
