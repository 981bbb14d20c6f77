"""openai-agents, through the Responses API, which is its default, and through chat completions."""

import asyncio
from typing import Any

import agents
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from agents.exceptions import ModelBehaviorError, ModelRefusalError
from openai import AsyncOpenAI

from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import Capital

_MODELS = {"openai-agents": OpenAIResponsesModel, "openai-agents-chat": OpenAIChatCompletionsModel}


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    agents.set_tracing_disabled(True)

    def agent(**more: Any) -> Agent[None]:
        sdk = AsyncOpenAI(base_url=served.url, api_key="unused", max_retries=0)
        settings = ModelSettings(temperature=0, max_tokens=s.TOKENS)
        return Agent("asked", model=_MODELS[client](served.model, sdk), model_settings=settings, **more)

    def ask(messages: Any) -> Any:
        return asyncio.run(Runner.run(agent(), messages))

    async def streamed() -> str:
        run = Runner.run_streamed(agent(), s.QUESTION)
        events = [event async for event in run.stream_events() if event.type == "raw_response_event"]
        deltas = [event.data.delta for event in events if event.data.type == "response.output_text.delta"]
        return "".join(deltas)

    def refused(messages: Any) -> str:
        if served.style == "refusal":
            return s.raised(lambda: ask(messages), ModelRefusalError, served.text)
        if client == "openai-agents":
            return s.raised(lambda: ask(messages), ModelBehaviorError)
        return s.check_refusal(ask(messages).final_output, served.text)

    def history() -> str:
        items = ask(s.QUESTION).to_input_list()
        refused([*items, s.user(s.REFUSED)])
        return str(ask([*items, s.user(s.NEXT)]).final_output)

    return {
        s.ANSWER: lambda: s.check_answer(ask(s.QUESTION).final_output),
        s.STREAM: lambda: s.check_answer(asyncio.run(streamed())),
        s.STRUCTURED: lambda: s.check_city(
            asyncio.run(Runner.run(agent(output_type=Capital), s.QUESTION)).final_output
        ),
        s.ABSTENTION: lambda: refused(s.REFUSED),
        s.HISTORY: history,
    }
