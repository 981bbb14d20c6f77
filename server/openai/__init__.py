"""Request bodies: what is understood, what is refused and how the refusal reads."""

from server.openai.chat import ChatRequest
from server.openai.checks import CheckRequest
from server.openai.completions import CompletionRequest
from server.openai.invalid import invalid_request

__all__ = ["ChatRequest", "CheckRequest", "CompletionRequest", "invalid_request"]
