"""What every client is asked, and when it has shown what it should."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ANSWER, STREAM, STRUCTURED, LIKELIHOODS = "answer", "stream", "structured", "log-likelihoods"
ABSTENTION, HISTORY = "abstention", "history"
STEPS = (ANSWER, STREAM, STRUCTURED, LIKELIHOODS, ABSTENTION, HISTORY)
"""In the order in which they are shown. A client has those that it does."""

QUESTION, ANSWERED = "What is the capital of France?", "Paris"
REFUSED, SOLUTION = "What is 23 plus 58?", "81"
NEXT = "What is the capital of Spain?"
CITIES = ("Paris", "Rome", "Berlin")
"""What structured output may say."""
TOKENS = 60
"""The longest answer."""
LONGEST = 600
"""Characters kept of what was shown."""


class StepFailedError(AssertionError):
    """A client showed something else than it should."""


@dataclass(frozen=True)
class Served:
    """The server that is asked. `url` ends in /v1; `text` is what an abstention shows."""

    url: str
    model: str
    style: str
    text: str
    tokenizer: str | None
    """The model's folder, for clients that count tokens themselves."""


Step = Callable[[], str]
Steps = Mapping[str, Step]
"""By name; each returns what the client showed, in a line."""
Turn = Callable[[list[Any]], tuple[list[Any], str]]
"""Takes a conversation; gives what the client would append, and what it shows."""


def check_answer(shown: str) -> str:
    """Raises StepFailedError unless it is the answer."""
    if ANSWERED not in shown:
        raise StepFailedError(f"wanted {ANSWERED}, got {shown!r}")
    return shown


def check_refusal(shown: str, text: str) -> str:
    """Raises StepFailedError unless the abstention's text is shown once, and no solution."""
    if shown.count(text) != 1 or SOLUTION in shown:
        raise StepFailedError(f"wanted {text!r} once and no {SOLUTION}, got {shown!r}")
    return shown


def check_city(found: object) -> str:
    """Raises StepFailedError unless structured output holds a city."""
    city = json.loads(found).get("city") if isinstance(found, str) else getattr(found, "city", None)
    if city not in CITIES:
        raise StepFailedError(f"wanted an object with a city of {', '.join(CITIES)}, got {found!r}")
    return str(city)


def raised(call: Callable[[], object], error: type[Exception], text: str | None = None) -> str:
    """For clients that raise where a guard abstains; their error shows `text` once, if they show one.

    Raises StepFailedError where nothing is raised.
    """
    try:
        found = call()
    except error as refusal:
        shown = str(getattr(refusal, "message", refusal))
        return f"{type(refusal).__name__}: {check_refusal(shown, text) if text else shown}"
    raise StepFailedError(f"wanted {error.__name__}, got {found!r}")


def user(text: str) -> dict[str, str]:
    """A message."""
    return {"role": "user", "content": text}


def conversation(turn: Turn, *questions: str) -> list[str]:
    """What is shown of each question, where nothing but the client's own is appended."""
    history: list[Any] = []
    shown = []
    for question in questions:
        history.append(user(question))
        said, text = turn(history)
        history.extend(said)
        shown.append(text)
    return shown


def spoken(turn: Turn, text: str, answer: str = ANSWER) -> Steps:
    """The steps of a client that takes messages: an answer, an abstention, and a further turn after both."""

    def history() -> str:
        first, refusal, last = conversation(turn, QUESTION, REFUSED, NEXT)
        check_answer(first)
        check_refusal(refusal, text)
        if not last.strip():
            raise StepFailedError("the turn after an abstention shows nothing")
        return last

    return {
        answer: lambda: check_answer(conversation(turn, QUESTION)[0]),
        ABSTENTION: lambda: check_refusal(conversation(turn, REFUSED)[0], text),
        HISTORY: history,
    }


def schema() -> dict[str, Any]:
    """A `response_format`."""
    city = {"type": "string", "enum": list(CITIES)}
    body = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "Capital", "strict": True, "schema": body}}
