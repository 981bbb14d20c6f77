"""LiteLLM as a library, with its provider for servers like this one."""

import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch its price list

import litellm

from benchmarks.clients.drivers import steps as s
from benchmarks.clients.drivers.openai_sdk import Capital, pieces


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""

    def ask(messages: list[Any], **more: Any) -> Any:
        return litellm.completion(
            model=f"hosted_vllm/{served.model}",
            api_base=served.url,
            api_key="unused",
            messages=messages,
            temperature=0,
            max_tokens=s.TOKENS,
            **more,
        )

    def turn(messages: list[Any]) -> tuple[list[Any], str]:
        message = ask(messages).choices[0].message
        return [message], (message.content or "") + (getattr(message, "refusal", None) or "")

    question = [s.user(s.QUESTION)]
    return {
        **s.spoken(turn, served.text),
        s.STREAM: lambda: s.check_answer(pieces(ask(question, stream=True))),
        s.STRUCTURED: lambda: s.check_city(ask(question, response_format=Capital).choices[0].message.content),
    }
