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
Talker = Callable[[str, list[str]], Iterator[str]]


def openai_create(url: str, questions: list[str]) -> Iterator[str]:
    with import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        messages: list[Any] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            choice = client.chat.completions.create(model=MODEL, messages=messages).choices[0]
            messages.append(choice.message)
            yield _shown(choice.message)


def openai_dumped(url: str, questions: list[str]) -> Iterator[str]:
    """With every field of the message, whatever it is."""
    with import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        messages: list[Any] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            choice = client.chat.completions.create(model=MODEL, messages=messages).choices[0]
            messages.append(choice.message.model_dump())
            yield _shown(choice.message)


def openai_parse(url: str, questions: list[str]) -> Iterator[str]:
    with import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        messages: list[Any] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            choice = client.chat.completions.parse(model=MODEL, messages=messages).choices[0]
            messages.append(choice.message)
            yield _shown(choice.message)


def openai_stream(url: str, questions: list[str]) -> Iterator[str]:
    with import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        messages: list[Any] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            with client.chat.completions.stream(model=MODEL, messages=messages) as stream:
                for _ in stream:
                    pass
                message = stream.current_completion_snapshot.choices[0].message
            messages.append(message)
            yield _shown(message)


def openai_chunks(url: str, questions: list[str]) -> Iterator[str]:
    """Put together by hand, as many programs do."""
    with import_module("openai").OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        messages: list[Any] = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            said: dict[str, Any] = {}
            for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
                for key, value in chunk.choices[0].delta.model_dump().items():
                    said[key] = (
                        said[key] + value if isinstance(value, str) and said.get(key) else value or said.get(key)
                    )
            messages.append(said)
            yield (said["content"] or "") + (said["refusal"] or "")


def langchain(url: str, questions: list[str]) -> Iterator[str]:
    model = import_module("langchain_openai").ChatOpenAI(base_url=url, api_key="x", model=MODEL, max_retries=0)
    messages: list[Any] = []
    for question in questions:
        messages.append(("user", question))
        answer = model.invoke(messages)
        messages.append(answer)
        yield (answer.content or "") + (answer.additional_kwargs.get("refusal") or "")


def langchain_stream(url: str, questions: list[str]) -> Iterator[str]:
    model = import_module("langchain_openai").ChatOpenAI(base_url=url, api_key="x", model=MODEL, max_retries=0)
    messages: list[Any] = []
    for question in questions:
        messages.append(("user", question))
        answer: Any = reduce(add, model.stream(messages))
        messages.append(answer)
        yield answer.content


def litellm(url: str, questions: list[str], provider: str = "hosted_vllm") -> Iterator[str]:
    package, messages = _litellm(), list[Any]()
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer = package.completion(model=f"{provider}/{MODEL}", api_base=url, api_key="x", messages=messages)
        message = answer.choices[0].message
        messages.append(message)
        yield (message.content or "") + (message.get("refusal") or "")


def litellm_openai(url: str, questions: list[str]) -> Iterator[str]:
    return litellm(url, questions, "openai")


def litellm_stream(url: str, questions: list[str]) -> Iterator[str]:
    package, messages = _litellm(), list[Any]()
    for question in questions:
        messages.append({"role": "user", "content": question})
        asked = {"model": f"hosted_vllm/{MODEL}", "api_base": url, "api_key": "x", "messages": messages}
        built = package.stream_chunk_builder(list(package.completion(**asked, stream=True)), messages=messages)
        message = built.choices[0].message
        messages.append(message)
        yield message.content or ""


def pydantic_ai(url: str, questions: list[str]) -> Iterator[str]:
    """A run that ends in an error leaves nothing in its history."""
    package, models = import_module("pydantic_ai"), import_module("pydantic_ai.models.openai")
    provider = import_module("pydantic_ai.providers.openai").OpenAIProvider(base_url=url, api_key="x")
    agent = package.Agent(models.OpenAIChatModel(MODEL, provider=provider))

    @agent.tool_plain  # type: ignore[untyped-decorator, unused-ignore]
    def clock(city: str = "here") -> str:
        """What time it is."""
        return f"noon in {city}"

    history: list[Any] = []
    loop = asyncio.new_event_loop()
    for question in questions:
        try:
            result = loop.run_until_complete(agent.run(question, message_history=history))
        except package.exceptions.ContentFilterError as error:
            yield str(error)
            continue
        history = result.all_messages()
        yield result.output


def _litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch its price list
    package: Any = import_module("litellm")
    package.telemetry = False
    return package


def _shown(message: Any) -> str:
    """As a client shows it that knows both fields."""
    return (message.content or "") + (message.refusal or "")


TALKERS: dict[str, Talker] = {
    talker.__name__: talker
    for talker in (
        openai_create,
        openai_dumped,
        openai_parse,
        openai_stream,
        openai_chunks,
        langchain,
        langchain_stream,
        litellm,
        litellm_openai,
        litellm_stream,
        pydantic_ai,
    )
}  # fmt: skip


if __name__ == "__main__":
    name, at = sys.argv[1:]
    print(json.dumps(list(TALKERS[name](at, json.load(sys.stdin)))))
