"""LiteLLM's proxy before a model elsewhere, with this server as its guardrail (docs/examples/litellm.yaml)."""

from pathlib import Path
from typing import Any

import openai

from benchmarks.clients.drivers import litellm_proxy
from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import pieces
from benchmarks.clients.drivers.upstream import Upstream

CONFIGURATION = Path(__file__).resolve().parents[3] / "docs" / "examples" / "litellm.yaml"
_SPOILED = "Where is Rome?"
"""A harmless question, to which the model elsewhere says what the guard withholds."""
_TOO_LONG = "Rome is a city. " * 4000


def _asked(content: str) -> dict[str, Any]:
    return {"model": "any-model", "messages": [s.user(content)]}


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    withheld = f"23 plus 58 is {s.SOLUTION}."
    upstream = Upstream({s.QUESTION: f"The capital of France is {s.ANSWERED}.", _SPOILED: withheld})
    key = litellm_proxy.new_key()
    environment = {
        "UPSTREAM_URL": upstream.url,
        "UPSTREAM_KEY": "unused",
        "SKILLGUARD_URL": served.url.removesuffix("/v1"),
        "SKILLGUARD_KEY": "unused",
    }
    url = litellm_proxy.started(CONFIGURATION, key, **environment)
    sdk = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    def ask(content: str, stream: bool) -> str:
        found: Any = sdk.chat.completions.create(**_asked(content), stream=stream)
        return pieces(found) if stream else str(found.choices[0].message.content)

    def blocked(content: str, stream: bool, reaches: bool, text: str | None) -> str:
        """Raises StepFailedError unless nothing comes out, and the model was asked only where that is told."""
        upstream.asked.clear()
        said = s.raised(lambda: ask(content, stream), openai.APIError, text)
        if upstream.asked != ([content] if reaches else []):
            raise s.StepFailedError(f"wanted the model {'asked' if reaches else 'not asked'}, got {upstream.asked!r}")
        return said

    def abstention() -> str:
        unguarded = openai.OpenAI(base_url=upstream.url, api_key="unused", max_retries=0)
        if s.SOLUTION not in pieces(unguarded.chat.completions.create(**_asked(_SPOILED), stream=True)):
            raise s.StepFailedError(f"wanted {s.SOLUTION} of the model that nothing guards")
        said = [
            blocked(content, stream, reaches, served.text)
            for content, reaches in ((s.REFUSED, False), (_SPOILED, True))
            for stream in (False, True)
        ]
        blocked(_TOO_LONG, False, False, None)
        return f"request and response, whole and streamed: {said[0]}; a text too long to judge is an error"

    return {
        s.ANSWER: lambda: s.check_answer(ask(s.QUESTION, stream=False)),
        s.STREAM: lambda: s.check_answer(ask(s.QUESTION, stream=True)),
        s.ABSTENTION: abstention,
    }
