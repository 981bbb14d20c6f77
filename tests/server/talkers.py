"""Other people's clients, each in a process of its own: long conversations with nothing but what they say to append.

    python -m tests.server.talkers NAME URL < QUESTIONS

QUESTIONS is a JSON list. The answer is one as well: what the client shows for each question. In a process, since some
of these packages leave threads, tasks and warnings behind.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from importlib import import_module
from operator import add
from typing import Any

MODEL = "scripted"
Turn = Callable[[list[Any]], tuple[Any, str]]
"""Takes the messages so far; gives the one to append, or a list of items to append, and what is shown of it."""


def _openai(url: str) -> Any:
    return import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0).chat.completions


def openai_create(url: str) -> Turn:
    return lambda messages: _as_shown(_openai(url).create(model=MODEL, messages=messages).choices[0].message)


def openai_dumped(url: str) -> Turn:
    """With every field of the message, whatever it is."""

    def turn(messages: list[Any]) -> tuple[Any, str]:
        message, shown = openai_create(url)(messages)
        return message.model_dump(), shown

    return turn


def openai_parse(url: str) -> Turn:
    return lambda messages: _as_shown(_openai(url).parse(model=MODEL, messages=messages).choices[0].message)


def openai_stream(url: str) -> Turn:
    def turn(messages: list[Any]) -> tuple[Any, str]:
        with _openai(url).stream(model=MODEL, messages=messages) as stream:
            for _ in stream:
                pass
            return _as_shown(stream.current_completion_snapshot.choices[0].message)

    return turn


def openai_chunks(url: str) -> Turn:
    """Put together by hand, as many programs do."""

    def turn(messages: list[Any]) -> tuple[Any, str]:
        said: dict[str, Any] = {}
        for chunk in _openai(url).create(model=MODEL, messages=messages, stream=True):
            for key, value in chunk.choices[0].delta.model_dump().items():
                both = isinstance(value, str) and bool(said.get(key))
                said[key] = said[key] + value if both else value or said.get(key)
        return said, (said["content"] or "") + (said["refusal"] or "")

    return turn


def _responses(url: str) -> Any:
    return import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0).responses


def responses_create(url: str) -> Turn:
    return lambda items: _items_as_shown(_responses(url).create(model=MODEL, input=items))


def responses_parse(url: str) -> Turn:
    return lambda items: _items_as_shown(_responses(url).parse(model=MODEL, input=items, store=False))


def responses_stream(url: str) -> Turn:
    """By the helper. The events of an answer that is not complete have it too."""

    def turn(items: list[Any]) -> tuple[Any, str]:
        with _responses(url).stream(model=MODEL, input=items) as stream:
            *_, last = stream
            return _items_as_shown(last.response)

    return turn


def responses_dumped(url: str) -> Turn:
    """With every field of each item, whatever it is."""

    def turn(items: list[Any]) -> tuple[Any, str]:
        said, shown = responses_create(url)(items)
        return [item.model_dump() for item in said], shown

    return turn


def _items_as_shown(response: Any) -> tuple[Any, str]:
    parts = [part for item in response.output for part in item.content]
    return response.output, "".join(part.refusal if part.type == "refusal" else part.text for part in parts)


def _langchain(url: str, **options: Any) -> Any:
    chat = import_module("langchain_openai").ChatOpenAI
    return chat(base_url=url, api_key="x", model=MODEL, max_retries=0, **options)


def langchain(url: str) -> Turn:
    def turn(messages: list[Any]) -> tuple[Any, str]:
        answer = _langchain(url).invoke(messages)
        return answer, (answer.content or "") + (answer.additional_kwargs.get("refusal") or "")

    return turn


def langchain_responses(url: str) -> Turn:
    def turn(messages: list[Any]) -> tuple[Any, str]:
        answer = _langchain(url, use_responses_api=True).invoke(messages)
        return answer, "".join(part[part["type"]] for part in answer.content)

    return turn


def langchain_stream(url: str) -> Turn:
    def turn(messages: list[Any]) -> tuple[Any, str]:
        answer: Any = reduce(add, _langchain(url).stream(messages))
        return answer, answer.content

    return turn


def _litellm(url: str, messages: list[Any], provider: str = "hosted_vllm", **options: Any) -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch its price list
    asked = {"model": f"{provider}/{MODEL}", "api_base": url, "api_key": "x", "messages": messages}
    return import_module("litellm").completion(**asked, **options)


def litellm(url: str) -> Turn:
    return lambda messages: _as_shown(_litellm(url, messages).choices[0].message)


def litellm_openai(url: str) -> Turn:
    return lambda messages: _as_shown(_litellm(url, messages, "openai").choices[0].message)


def litellm_stream(url: str) -> Turn:
    def turn(messages: list[Any]) -> tuple[Any, str]:
        chunks = list(_litellm(url, messages, stream=True))
        return _as_shown(import_module("litellm").stream_chunk_builder(chunks, messages=messages).choices[0].message)

    return turn


def _as_shown(message: Any) -> tuple[Any, str]:
    """As a client shows it that knows both fields."""
    return message, (message.content or "") + (getattr(message, "refusal", None) or "")


TURNS: dict[str, Callable[[str], Turn]] = {
    client.__name__: client
    for client in (
        *(openai_create, openai_dumped, openai_parse, openai_stream, openai_chunks),
        *(responses_create, responses_dumped, responses_parse, responses_stream),
        *(langchain, langchain_stream, langchain_responses),
        *(litellm, litellm_openai, litellm_stream),
    )
}


def talk(turn: Turn, questions: list[str]) -> Iterator[str]:
    """A conversation to which every answer is appended."""
    messages: list[Any] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        said, shown = turn(messages)
        messages.extend(said if isinstance(said, list) else [said])
        yield shown


AGENTS = {"agent": "OpenAIChatModel", "agent_responses": "OpenAIResponsesModel"}
"""pydantic-ai's models, by endpoint."""


def agent(url: str, questions: list[str], model: str) -> Iterator[str]:
    """pydantic-ai with a tool. A run that ends in an error leaves nothing in its history."""
    package, models = import_module("pydantic_ai"), import_module("pydantic_ai.models.openai")
    provider = import_module("pydantic_ai.providers.openai").OpenAIProvider(base_url=url, api_key="x")

    def clock(city: str = "here") -> str:
        """What time it is."""
        return f"noon in {city}"

    asked = package.Agent(getattr(models, model)(MODEL, provider=provider), tools=[clock])
    history: list[Any] = []
    with asyncio.Runner() as runner:
        for question in questions:
            try:
                result = runner.run(asked.run(question, message_history=history))
            except package.exceptions.ContentFilterError as error:
                yield str(error)
                continue
            history = result.all_messages()
            yield result.output


if __name__ == "__main__":
    name, *addresses = sys.argv[1:]
    questions = json.load(sys.stdin)
    shown = [
        list(agent(at, questions, AGENTS[name]) if name in AGENTS else talk(TURNS[name](at), questions))
        for at in addresses
    ]
    print(json.dumps(shown))
