"""Request bodies: what is understood, what is refused and how the refusal reads."""

from server.openai.chat import ChatRequest
from server.openai.checks import CheckRequest
from server.openai.completions import CompletionRequest
from server.openai.invalid import invalid_request
from server.openai.tokens import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ChatRequest",
    "CheckRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "TokenizeRequest",
    "invalid_request",
]
