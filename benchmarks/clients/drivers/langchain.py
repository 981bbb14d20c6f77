"""LangChain's ChatOpenAI: `invoke`, `stream`, `with_structured_output`."""

from typing import Any

from langchain_openai import ChatOpenAI

from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import Capital


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    model = ChatOpenAI(
        base_url=served.url,
        api_key="unused",
        model=served.model,
        temperature=0,
        max_retries=0,
        max_completion_tokens=s.TOKENS,
    )

    def turn(messages: list[Any]) -> tuple[list[Any], str]:
        answer = model.invoke(messages)
        return [answer], str(answer.content) + str(answer.additional_kwargs.get("refusal") or "")

    parser = model.with_structured_output(Capital, method="json_schema")
    return {
        **s.spoken(turn, served.text),
        s.STREAM: lambda: s.check_answer("".join(str(chunk.content) for chunk in model.stream(s.QUESTION))),
        s.STRUCTURED: lambda: s.check_city(parser.invoke(s.QUESTION)),
    }
