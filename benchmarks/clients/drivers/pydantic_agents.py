"""pydantic-ai's agents. A run that ends in an error leaves nothing in their history."""

import asyncio
from typing import Any

from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import Capital


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    model = OpenAIChatModel(served.model, provider=OpenAIProvider(base_url=served.url, api_key="unused"))
    settings = ModelSettings(temperature=0, max_tokens=s.TOKENS)
    agent: Agent[None, str] = Agent(model, model_settings=settings, retries=0)

    def ask(question: str, history: list[Any] | None = None) -> Any:
        return asyncio.run(agent.run(question, message_history=history))

    async def streamed() -> str:
        async with agent.run_stream(s.QUESTION) as run:
            return str(await run.get_output())

    def structured() -> str:
        parser = Agent(model, model_settings=settings, output_type=NativeOutput(Capital), retries=0)
        return s.check_city(asyncio.run(parser.run(s.QUESTION)).output)

    def abstention() -> str:
        if served.style == "refusal":
            return s.raised(lambda: ask(s.REFUSED), ContentFilterError, served.text)
        return s.check_refusal(ask(s.REFUSED).output, served.text)

    def history() -> str:
        messages = ask(s.QUESTION).all_messages()
        if served.style == "refusal":
            s.raised(lambda: ask(s.REFUSED, messages), ContentFilterError, served.text)
        else:
            messages = ask(s.REFUSED, messages).all_messages()
        return str(ask(s.NEXT, messages).output)

    return {
        s.ANSWER: lambda: s.check_answer(ask(s.QUESTION).output),
        s.STREAM: lambda: s.check_answer(asyncio.run(streamed())),
        s.STRUCTURED: structured,
        s.ABSTENTION: abstention,
        s.HISTORY: history,
    }
