"""vLLM's tool-call parsers behind our ToolCallParser. The only module that knows them.

A forced choice is drawn as JSON under a schema and read as JSON, whatever the model's own way to write calls. The
model's own way is read by the parser that the operator named. vLLM has two readings of it, of a whole text and of a
stream; the second loses text at times, so at a stream's end the first says what is missing.
"""

import copy
import json
import logging
from collections.abc import Callable
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.parser.abstract_parser import DelegatingParser
from vllm.parser.parser_manager import ParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tokenizers.hf import get_cached_tokenizer
from vllm.tool_parsers import ToolParser, ToolParserManager
from vllm.tool_parsers.utils import get_json_schema_from_tools

from server.engines.errors import EngineFlagError, UnsupportedOptionError
from server.engines.request import Grammar, GrammarKind, ToolPlan
from server.engines.template import template_tool
from server.engines.tools import Parsed, ParsedPiece, ToolCall, ToolCallPiece, ToolChoice, ToolUse

logger = logging.getLogger("skillguard.server")


class _JsonParser(DelegatingParser):  # type: ignore[misc]
    """Reads forced calls, which no parser of a model's own way takes part in."""

    tool_parser_cls = ToolParser


class VllmTools:
    """Plans the tools of requests. Raises EngineFlagError for a parser that is unknown, or not this model's."""

    def __init__(self, parser: str | None, tokenizer: Any) -> None:
        # A copy: a parser may encode, and whether special tokens are parsed is a switch inside a tokenizer.
        self._tokenizer = get_cached_tokenizer(copy.deepcopy(tokenizer))
        self._auto = None if parser is None else _find(parser, self._tokenizer)

    @property
    def choices(self) -> frozenset[ToolChoice]:
        """What can be honoured: the model can only choose for itself where its calls are understood."""
        return frozenset(ToolChoice) - (frozenset() if self._auto is not None else {ToolChoice.AUTO})

    def plan(self, use: ToolUse) -> ToolPlan:
        """See `Engine.plan_tools`."""
        try:
            if use.choice is not ToolChoice.AUTO:
                request = _request(use)
                schema = get_json_schema_from_tools(request.tool_choice, request.tools, request.parallel_tool_calls)
                grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))
                return ToolPlan(lambda: VllmToolParser(lambda: self._make(_JsonParser, use), use.parallel), grammar)
            parser, request = self._make(self._auto, use)
            request = parser.adjust_request(request)
        except (ValueError, VLLMClientError) as error:  # vLLM's own checks, such as of definitions of one name
            raise UnsupportedOptionError(f"'tools': {error.args[0]}", "tools") from error
        tag = None if request.structured_outputs is None else request.structured_outputs.structural_tag
        strict = next((index for index, tool in enumerate(use.tools) if tool.strict), None)
        if tag is None and strict is not None:
            field = f"tools[{strict}].function.strict"
            raise UnsupportedOptionError(
                f"'{field}': this server's tool-call parser cannot keep arguments to their schema; "
                "leave it out, or force the call by 'tool_choice'.",
                field,
            )
        return ToolPlan(
            lambda: VllmToolParser(lambda: self._make(self._auto, use), use.parallel),
            None if tag is None else Grammar(GrammarKind.STRUCTURAL_TAG, tag),
            special_tokens=not request.skip_special_tokens,
        )

    def _make(self, kind: Any, use: ToolUse) -> tuple[Any, Any]:
        """A parser, and the request in whose light it reads; both are changed by reading."""
        request = _request(use)
        return kind(self._tokenizer, request.tools), request


class VllmToolParser:
    """See `server.engines.tools.ToolCallParser`. `make` gives a fresh parser of vLLM's, with its request."""

    def __init__(self, make: Callable[[], tuple[Any, Any]], parallel: bool) -> None:
        self._make, self._parallel = make, parallel
        self._stream: tuple[Any, Any] | None = None
        self._failed = False
        self._text = self._content = ""
        self._token_ids: list[int] = []
        """Those whose text has not come yet."""
        self._calls: list[ToolCall] = []
        """What was given out of each call."""

    def whole(self, text: str) -> Parsed:
        try:
            parser, request = self._make()
            _, content, found = parser.parse(text, request, enable_auto_tools=True)
        except Exception:  # a parser reads what a model made up
            logger.exception("the tool-call parser failed on a whole answer; it is sent as text")
            return Parsed(text)
        if not found:
            return Parsed(content or text)
        calls = tuple(ToolCall(call.id or make_tool_call_id(), call.name, call.arguments) for call in found)
        return Parsed(content if content and content.strip() else "", calls if self._parallel else calls[:1])

    def push(self, text: str, token_ids: tuple[int, ...], *, final: bool) -> ParsedPiece:
        self._text += text
        self._token_ids += token_ids
        delta = self._feed(text, final) if text or (final and self._text) else None
        content = (delta.content or "") if delta is not None else ""
        calls = [piece for each in (delta.tool_calls or () if delta else ()) if (piece := self._piece(each))]
        self._content += content
        if final:
            more = self._missing()
            content, calls = content + more.content, [*calls, *more.calls]
        return ParsedPiece(content, tuple(calls))

    def _feed(self, text: str, final: bool) -> Any:
        """vLLM's delta. Nothing after a failure: the end then sends what is missing."""
        if self._failed:
            return None
        try:
            if self._stream is None:
                self._stream = self._make()
            parser, request = self._stream
            token_ids, self._token_ids = self._token_ids, []
            return parser.parse_delta(text, token_ids, request, prompt_token_ids=[], finished=final)
        except Exception:
            self._failed = True
            logger.exception("the tool-call parser failed in a stream; the rest is sent at its end")
            return None

    def _piece(self, delta: Any) -> ToolCallPiece | None:
        """A call's delta as ours; None for what cannot be said yet, or is one call too many."""
        index, function = delta.index, delta.function
        name, arguments = (function.name, function.arguments or "") if function is not None else (None, "")
        if index > 0 and not self._parallel:
            return None
        if index == len(self._calls) and name:
            self._calls.append(ToolCall(delta.id or make_tool_call_id(), name, arguments))
            return ToolCallPiece(index, arguments, self._calls[index].id, name)
        if index >= len(self._calls) or not arguments:
            return None
        said = self._calls[index]
        self._calls[index] = ToolCall(said.id, said.name, said.arguments + arguments)
        return ToolCallPiece(index, arguments)

    def _missing(self) -> ParsedPiece:
        """What the whole text says beyond what was given out; what was cannot be taken back."""
        whole = self.whole(self._text)
        if self._calls and not whole.calls:
            return ParsedPiece()  # a call that was cut short, of which the stream gave what there is
        content = whole.content[len(self._content) :] if whole.content.startswith(self._content) else ""
        pieces = []
        for index, call in enumerate(whole.calls):
            if index >= len(self._calls):
                pieces.append(ToolCallPiece(index, call.arguments, call.id, call.name))
            elif rest := _rest(self._calls[index].arguments, call.arguments):
                pieces.append(ToolCallPiece(index, rest))
        return ParsedPiece(content, tuple(pieces))


def _rest(said: str, arguments: str) -> str:
    """What of a call's arguments was not said; they may be spelled otherwise."""
    if arguments.startswith(said):
        return arguments[len(said) :]
    try:
        complete = json.loads(said) == json.loads(arguments)
    except ValueError:
        complete = False
    if not complete:
        logger.warning("the tool-call parser streamed other arguments than the whole answer has")
    return ""


def _find(name: str, tokenizer: Any) -> Any:
    """vLLM's parser of that name."""
    known = ToolParserManager.list_registered()
    if name not in known:
        raise EngineFlagError(f"--tool-call-parser: got {name!r}, wanted one of {', '.join(known)}")
    try:
        kind = ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True, tokenizer=tokenizer)
        kind(tokenizer).parse("", _request(ToolUse(())), enable_auto_tools=True)
    except Exception as error:  # each has its own way to say what it misses in a tokenizer
        raise EngineFlagError(f"--tool-call-parser {name}: not with this model: {error}") from error
    return kind


def _request(use: ToolUse) -> Any:
    """What vLLM's parsers read of a request. Schemas are copied, since some are changed."""
    tools = copy.deepcopy([template_tool(tool) for tool in use.tools])
    for shown, tool in zip(tools, use.tools, strict=True):
        shown["function"]["strict"] = tool.strict or None
    named = {"type": "function", "function": {"name": use.name}}
    return ChatCompletionRequest(
        messages=[],
        tools=tools or None,
        tool_choice=(named if use.choice is ToolChoice.NAMED else use.choice.value) if tools else None,
        parallel_tool_calls=use.parallel,
    )
