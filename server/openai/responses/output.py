"""The items of one answer and the events that tell of them, in the order in which the answer grows.

    output_item.added
      a message: content_part.added, output_text.delta (or refusal.delta) …, output_text.done, content_part.done
      a call:    function_call_arguments.delta …, function_call_arguments.done
    output_item.done

One item is open at a time. What comes after a call is a message of its own. A call that a guard or the token limit ends
has no `function_call_arguments.done`, and its `status` is `incomplete`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Event = dict[str, Any]
Item = dict[str, Any]


class Output:
    """One answer's items so far. Its methods give the events of what they add, each to be written before the next."""

    def __init__(self, response_id: str) -> None:
        self.items: list[Item] = []
        self.withheld = False
        """Whether a guard ended the answer, and so the call that is open, if one is."""
        self._suffix = response_id.partition("_")[2]
        self._open: Item | None = None
        self._part: dict[str, Any] | None = None
        self._call: int | None = None
        self._logprobs: list[object] = []
        """Of tokens that came before the text which they belong to."""

    def take(self, delta: Mapping[str, Any], logprobs: Sequence[object]) -> Iterator[Event]:
        """What a chat's message, or a piece of one, adds."""
        self._logprobs.extend(logprobs)
        if text := delta.get("content"):
            yield from self._text("output_text", "text", text)
        elif self._part is not None and self._logprobs:
            yield from self._text("output_text", "text", "")
        if text := delta.get("refusal"):
            yield from self._text("refusal", "refusal", text)
        for index, call in enumerate(delta.get("tool_calls") or ()):
            yield from self._more_of_call(call.get("index", index), call)

    def close(self, status: str) -> Iterator[Event]:
        """The end of the answer. One without a word is an empty message."""
        if not self.items:
            yield from self._text("output_text", "text", "")
        yield from self._close_item(status)

    def without_calls(self) -> list[Item]:
        """What was said. An answer that a guard or an error ended calls nothing, whatever of it was sent."""
        return [item for item in self.items if item["type"] == "message"]

    def _text(self, kind: str, key: str, text: str) -> Iterator[Event]:
        if self._part is None or self._part["type"] != kind:
            yield from self._open_part(kind, key)
        part = self._part
        assert part is not None, "it was opened"
        part[key] += text
        delta = {**self._place(), "content_index": self._content_index(), "delta": text}
        if kind == "output_text":
            delta["logprobs"], self._logprobs = self._logprobs, []
            part["logprobs"].extend(delta["logprobs"])
        yield {"type": f"response.{kind}.delta", **delta}

    def _open_part(self, kind: str, key: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            yield from self._open_item({"type": "message", "role": "assistant", "content": []}, "msg")
        yield from self._close_part()
        part: dict[str, Any] = {"type": kind, key: ""}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": []}
        self._message()["content"].append(part)
        self._part = part
        yield {"type": "response.content_part.added", **self._place(), **self._part_event()}

    def _close_part(self) -> Iterator[Event]:
        part = self._part
        if part is None:
            return
        place = {**self._place(), "content_index": self._content_index()}
        if part["type"] == "refusal":
            yield {"type": "response.refusal.done", **place, "refusal": part["refusal"]}
        else:
            said = {"text": part["text"], "logprobs": part["logprobs"]}
            yield {"type": "response.output_text.done", **place, **said}
        yield {"type": "response.content_part.done", **self._place(), **self._part_event()}
        self._part = None

    def _more_of_call(self, index: int, call: Mapping[str, Any]) -> Iterator[Event]:
        if index != self._call:
            self._call = index
            named = {"call_id": call["id"], "name": call["function"]["name"], "arguments": ""}
            yield from self._open_item({"type": "function_call", **named}, "fc")
        item = self._open
        assert item is not None, "a call's later pieces follow its first one"
        if more := call["function"]["arguments"]:
            item["arguments"] += more
            yield {"type": "response.function_call_arguments.delta", **self._place(), "delta": more}

    def _open_item(self, item: Item, prefix: str) -> Iterator[Event]:
        yield from self._close_item("incomplete" if self.withheld else "completed")
        self._open = {"id": f"{prefix}_{self._suffix}{len(self.items)}", "status": "in_progress", **item}
        self.items.append(self._open)
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": self._open}

    def _close_item(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        yield from self._close_part()
        if item["type"] == "function_call" and status == "completed":
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **self._place(), **said}
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
        self._open = None

    def _message(self) -> Item:
        assert self._open is not None, "an item is open"
        return self._open

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message()["id"], "output_index": len(self.items) - 1}

    def _content_index(self) -> int:
        return len(self._message()["content"]) - 1

    def _part_event(self) -> dict[str, Any]:
        assert self._part is not None, "a part is open"
        return {"content_index": self._content_index(), "part": self._part}
