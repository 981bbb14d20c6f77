"""The official client: `create`, `parse`, `stream`, and the Responses API."""

from typing import Any, Literal

import openai
from pydantic import BaseModel

from benchmarks.clients.drivers import steps as s


class Capital(BaseModel):
    """What is parsed."""

    city: Literal[s.CITIES]  # type: ignore[valid-type]


def shown(message: Any) -> tuple[list[Any], str]:
    """A message, and its text whichever field it is in."""
    return [message], (message.content or "") + (message.refusal or "")


def pieces(chunks: Any) -> str:
    """The text of a stream."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return "".join((delta.content or "") + (getattr(delta, "refusal", None) or "") for delta in deltas)


def create(client: openai.OpenAI, served: s.Served) -> s.Steps:
    """`chat.completions.create`, whole and streamed."""

    def ask(messages: list[Any], **more: Any) -> Any:
        return client.chat.completions.create(
            model=served.model, messages=messages, temperature=0, max_tokens=s.TOKENS, **more
        )

    return {
        **s.spoken(lambda messages: shown(ask(messages).choices[0].message), served.text),
        s.STREAM: lambda: s.check_answer(pieces(ask([s.user(s.QUESTION)], stream=True))),
        s.STRUCTURED: lambda: s.check_city(
            ask([s.user(s.QUESTION)], response_format=s.schema()).choices[0].message.content
        ),
    }


def parse(client: openai.OpenAI, served: s.Served) -> s.Steps:
    """`chat.completions.parse`, which raises where an answer ends in "content_filter"."""

    def ask(messages: list[Any], **more: Any) -> Any:
        found = client.chat.completions.parse(
            model=served.model, messages=messages, temperature=0, max_tokens=s.TOKENS, **more
        )
        return found.choices[0].message

    found = {
        **s.spoken(lambda messages: shown(ask(messages)), served.text),
        s.STRUCTURED: lambda: s.check_city(ask([s.user(s.QUESTION)], response_format=Capital).parsed),
    }
    if served.style == "content_filter":
        error = openai.ContentFilterFinishReasonError
        found[s.ABSTENTION] = lambda: s.raised(lambda: ask([s.user(s.REFUSED)]), error)
        found[s.HISTORY] = lambda: s.conversation(lambda messages: shown(ask(messages)), s.QUESTION, s.NEXT)[1]
    return found


def stream(client: openai.OpenAI, served: s.Served) -> s.Steps:
    """The helper `chat.completions.stream`, whose message is put together by the SDK."""

    def turn(messages: list[Any]) -> tuple[list[Any], str]:
        with client.chat.completions.stream(
            model=served.model, messages=messages, temperature=0, max_tokens=s.TOKENS
        ) as events:
            for _ in events:
                pass
            return shown(events.current_completion_snapshot.choices[0].message)

    return s.spoken(turn, served.text, s.STREAM)


def responses(client: openai.OpenAI, served: s.Served) -> s.Steps:
    """`responses`: items in the place of messages."""

    def ask(items: list[Any], **more: Any) -> Any:
        return client.responses.create(
            model=served.model, input=items, temperature=0, max_output_tokens=s.TOKENS, **more
        )

    def turn(items: list[Any]) -> tuple[list[Any], str]:
        found = ask(items)
        parts = [part for item in found.output for part in item.content]
        return found.output, "".join(part.refusal if part.type == "refusal" else part.text for part in parts)

    def streamed() -> str:
        events = ask([s.user(s.QUESTION)], stream=True)
        return s.check_answer("".join(event.delta for event in events if event.type == "response.output_text.delta"))

    def structured() -> str:
        found = client.responses.parse(
            model=served.model, input=s.QUESTION, text_format=Capital, temperature=0, max_output_tokens=s.TOKENS
        )
        return s.check_city(found.output_parsed)

    return {**s.spoken(turn, served.text), s.STREAM: streamed, s.STRUCTURED: structured}


_WAYS = {"openai-create": create, "openai-parse": parse, "openai-stream": stream, "openai-responses": responses}


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    return _WAYS[client](openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0), served)
