"""Prompts to token ids, for every route: counted first, bounded next, encoded last and beside the event loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from server.engines.base import NO_VARIABLES, Engine
from server.engines.errors import PromptTooLongError
from server.engines.request import Message
from server.engines.tools import Tool
from server.workers import SharedWorkers

P = ParamSpec("P")
T = TypeVar("T")

AT_A_TIME = 2
"""Of one tenant. There is one thread more."""
MOST_WAITING = 256
"""Of one tenant."""
LIKELY_CHARACTERS = 8
"""Of a token. A text of more for each token of the context is looked at by its beginning first: most do not fit."""
_ROOM = 1.1
"""How many more tokens the beginning of a text may have, cut in the middle of a word, than as part of the whole."""


class Encoder:
    """An engine's `encode_text` and `encode_chat`, for a tenant, who has a queue and no more than some of the threads.

    Both raise PromptTooLongError without encoding more than a few times the model's context, however long the text,
    and EngineBusyError where too many are queued. To be awaited within `while_connected`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workers = SharedWorkers("prompts to be encoded", each_at_a_time=AT_A_TIME, each_waiting=MOST_WAITING)

    async def text(self, tenant: str, text: str, *, opened: bool = True) -> tuple[int, ...]:
        """The token ids of a bare text."""
        self._require_room((text,))
        return await self._workers.run(tenant, self._text, text, opened)

    async def chat(
        self,
        tenant: str,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, object] = NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        """The token ids of a conversation. One of more messages than the context has tokens is too long as well."""
        most = self._engine.info.max_model_tokens
        if len(messages) > most:
            raise PromptTooLongError(
                f"got {len(messages)} messages, wanted at most {most}, as many as the context has tokens"
            )
        said = [message.content for message in messages]
        calls = [call.arguments for message in messages for call in message.tool_calls]
        shown = [(tool.name, tool.description, tool.parameters) for tool in tools]
        self._require_room([*said, *_texts([calls, shown, variables])])
        return await self._workers.run(tenant, self._chat, messages, tools, variables, answered)

    async def read(self, tenant: str, token_ids: Sequence[int]) -> str:
        """The text of token ids. Raises PromptTooLongError for more than the context has, as no text of the model's."""
        most = self._engine.info.max_model_tokens
        if len(token_ids) > most:
            raise PromptTooLongError(f"got {len(token_ids)} tokens, wanted at most {most}: read them in parts")
        return await self._workers.run(tenant, self._engine.decode, token_ids)

    async def run(self, tenant: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What else has to do with token ids and texts, on the same threads."""
        return await self._workers.run(tenant, work, *args, **kwargs)

    @property
    def waiting(self) -> int:
        """How many prompts are queued behind those that are being encoded, of all tenants."""
        return self._workers.waiting

    def close(self) -> None:
        """Begins nothing more."""
        self._workers.close()

    def _text(self, text: str, opened: bool) -> tuple[int, ...]:
        self._require_short_beginning(text)
        return self._engine.encode_text(text, opened=opened)

    def _chat(
        self, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, object], answered: bool
    ) -> tuple[int, ...]:
        self._require_short_beginning("".join(message.content for message in messages))
        return self._engine.encode_chat(messages, tools, variables, answered=answered)

    def _require_room(self, texts: Iterable[str]) -> None:
        """Raises PromptTooLongError for more characters than that many of the longest token have."""
        info = self._engine.info
        most, characters = info.max_model_tokens * info.longest_token, sum(map(len, texts))
        if characters > most:
            raise PromptTooLongError(
                f"got a prompt of {characters} characters, wanted at most {most}: the model's context is "
                f"{info.max_model_tokens} tokens, and no token has more than {info.longest_token} characters"
            )

    def _require_short_beginning(self, text: str) -> None:
        """Raises PromptTooLongError where the beginning alone does not fit the context."""
        most = self._engine.info.max_model_tokens
        beginning = text[: LIKELY_CHARACTERS * most]
        if len(beginning) < len(text):
            tokens = len(self._engine.encode_text(beginning))
            if tokens > _ROOM * most:
                raise PromptTooLongError(
                    f"got a prompt of {len(text)} characters, of which {len(beginning)} are {tokens} tokens; wanted at "
                    f"most {most} tokens: shorten the prompt"
                )


def _texts(value: object) -> Iterable[str]:
    """All that is text in what a request's JSON holds."""
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                yield text
            case Mapping() as of:
                left += [*of, *of.values()]
            case list() | tuple() as of:
                left += of
