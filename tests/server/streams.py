"""What the tests of streams expect their events to be made of."""

from typing import Any


def delta(finish_reason: str | None = None, **fields: object) -> dict[str, object]:
    """A chat chunk's choice."""
    return {"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish_reason}


ROLE = delta(role="assistant", content="", refusal=None)
ROLE_THAT_MAY_REFUSE = delta(role="assistant", content=None, refusal=None)
"""Under the style `refusal`, so that a refused answer has no content."""


def choices_of(events: list[Any]) -> list[Any]:
    """The single choice of each chunk; other events as they are. All chunks must share one envelope."""
    chunks = [event for event in events if event != "[DONE]" and "error" not in event]
    assert len({(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    return [event["choices"][0] if isinstance(event, dict) and event.get("choices") else event for event in events]
