"""The scripted engine's way to call tools: `[[name|arguments]]` anywhere in a text."""

from collections.abc import Callable

from server.engines.tools import Parsed, ParsedPiece, ToolCall, ToolCallPiece

_OPEN, _BETWEEN, _CLOSE = "[[", "|", "]]"


class ScriptedToolParser:
    """A ToolCallParser. Calls are numbered, so that tests can tell them apart."""

    def __init__(self) -> None:
        self._held = ""
        self._state: Callable[[], bool] = self._content
        self._count = 0
        self._said = ""
        self._calls: list[ToolCallPiece] = []

    def whole(self, text: str) -> Parsed:
        piece = ScriptedToolParser().push(text, (), final=True)
        calls: list[ToolCall] = []
        for each in piece.calls:
            if each.id is not None and each.name is not None:
                calls.append(ToolCall(each.id, each.name, ""))
            last = calls[each.index]
            calls[each.index] = ToolCall(last.id, last.name, last.arguments + each.arguments)
        return Parsed(piece.content, tuple(calls))

    def push(self, text: str, token_ids: tuple[int, ...], *, final: bool) -> ParsedPiece:
        self._held += text
        while self._state():
            pass
        if final and self._state != self._arguments:
            self._said += (_OPEN if self._state == self._name else "") + self._held
        piece, self._said, self._calls = ParsedPiece(self._said, tuple(self._calls)), "", []
        return piece

    def _content(self) -> bool:
        self._said, found = self._said + self._until(_OPEN), self._met(_OPEN)
        if found:
            self._state = self._name
        return found

    def _name(self) -> bool:
        name, found, rest = self._held.partition(_BETWEEN)
        if found:
            self._calls.append(ToolCallPiece(self._count, id=f"call_{self._count}", name=name))
            self._held, self._state = rest, self._arguments
        return bool(found)

    def _arguments(self) -> bool:
        if more := self._until(_CLOSE):
            self._calls.append(ToolCallPiece(self._count, more))
        found = self._met(_CLOSE)
        if found:
            self._count, self._state = self._count + 1, self._content
        return found

    def _until(self, mark: str) -> str:
        """Takes what comes before a mark, or before what may become one."""
        end = self._held.find(mark)
        if end < 0:
            end = len(self._held) - self._held.endswith(mark[0])
        taken, self._held = self._held[:end], self._held[end:]
        return taken

    def _met(self, mark: str) -> bool:
        met = self._held.startswith(mark)
        self._held = self._held.removeprefix(mark)
        return met
