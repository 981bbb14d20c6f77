"""instructor, which parses every answer: there is none without a structure, and an abstention is an error to it."""

from typing import Any

import instructor
import openai
from instructor.core import InstructorRetryException

from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import Capital


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    sdk = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
    parser: Any = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)
    common: Any = {"model": served.model, "temperature": 0, "max_tokens": s.TOKENS, "response_model": Capital}

    def ask(messages: list[Any]) -> Any:
        return parser.chat.completions.create_with_completion(messages=messages, max_retries=1, **common)

    def streamed() -> str:
        *_, last = parser.chat.completions.create_partial(messages=[s.user(s.QUESTION)], **common)
        return s.check_city(last)

    def history() -> str:
        messages: list[Any] = [s.user(s.QUESTION)]
        _, completion = ask(messages)
        messages += [completion.choices[0].message.model_dump(), s.user(s.NEXT)]
        return s.check_city(ask(messages)[0])

    return {
        s.STREAM: streamed,
        s.STRUCTURED: lambda: s.check_city(ask([s.user(s.QUESTION)])[0]),
        s.ABSTENTION: lambda: s.raised(lambda: ask([s.user(s.REFUSED)]), InstructorRetryException),
        s.HISTORY: history,
    }
