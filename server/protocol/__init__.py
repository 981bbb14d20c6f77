"""Request bodies: what is understood, what is refused and how the refusal reads."""

from server.protocol.chat import ChatRequest
from server.protocol.checks import CheckRequest
from server.protocol.completions import CompletionRequest
from server.protocol.invalid import invalid_request

__all__ = ["ChatRequest", "CheckRequest", "CompletionRequest", "invalid_request"]
