"""Errors of the server package, and the one table that turns any error into OpenAI's shape.

SkillguardError (guards/errors.py)
├── EngineError …                (server/engines/errors.py)
└── ServerError
    ├── ConfigError              a setting or a file named by one is wrong; nothing starts
    │   └── SettingsError            several may be, of `serve`
    ├── RequestError             the caller's request is refused (4xx); its text is written for the caller
    │   ├── InvalidRequestError      a field is missing, unknown or wrong
    │   ├── NotJsonError             the body is not declared as JSON
    │   ├── EncodedBodyError         the body is compressed
    │   ├── BodyTooLargeError        the body exceeds `max_body_bytes`
    │   ├── RequestTimeoutError      headers or body did not come in time
    │   ├── HeadersTooLargeError     headers or trailers are too many or too long
    │   ├── MalformedRequestError    no HTTP/1.1, or what may be read in two ways
    │   ├── PipelineError            too many requests wait on one connection
    │   ├── TooManyConnectionsError  no place is left for another connection
    │   ├── MisdirectedError         the Host is none of the server's names
    │   ├── NoSuchRouteError         unknown path
    │   ├── WrongMethodError         known path, other method
    │   ├── ModelNotFoundError       `model` is not the one served
    │   ├── GuardNotFoundError       no guard of that name is attached
    │   ├── ChangeRefusedError       a guard cannot be changed as asked; it is as before
    │   ├── InvalidKeyError          no API key, or an unknown one
    │   ├── ForbiddenError           the key's role may not do this
    │   ├── LimitError               the tenant has had what its limits allow
    │   ├── AbstainedError           an enforced guard fired and `abstain_style` is `error`
    │   └── ClientGoneError          the caller hung up; nobody reads this answer
    ├── ServerUnreachableError   no skillguard server answers at the address that a command asks
    ├── ServerRefusalError       a skillguard server refuses what a command asks of it
    ├── EvaluationError          an evaluation cannot be run, resumed or completed as asked
    ├── AuditFilesError          files of an audit log cannot be read, or do not hold what a command needs
    ├── AuditError               an answer cannot be recorded in the audit log, so it is not given
    ├── NotReadyError            the engine is loading, being verified, failed, or stopping
    └── GenerationError          the engine ended an answer with an error
        └── UnverifiedError          a position had no finite reading of every guard
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guards.errors import GuardReadingError, SkillguardError
from server.engines.errors import (
    EngineBusyError,
    EngineError,
    EngineStoppedError,
    InvalidOptionError,
    PromptError,
    PromptTooLongError,
    UnsupportedOptionError,
)
from server.engines.events import GuardFault


class ServerError(SkillguardError):
    """Root of what the server package raises."""


class ConfigError(ServerError):
    """A setting, or a file that a setting names, cannot be used. Raised before anything is served."""


class SettingsError(ConfigError):
    """What is wrong with the settings of `serve`, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ServerUnreachableError(ServerError):
    """No skillguard server answers at the address that a command was given."""

    @classmethod
    def at(cls, url: str, error: Exception) -> "ServerUnreachableError":
        """Of an address, and what came of asking there."""
        return cls(
            f"{url}: no skillguard server answers there ({error!r}); wanted the address of a running one, such as "
            "http://127.0.0.1:8000: correct it, or start one with `skillguard serve`"
        )


class ServerRefusalError(ServerError):
    """A skillguard server refuses what a command asks of it; the text is the server's."""


class EvaluationError(ServerError):
    """An evaluation cannot be run as asked, does not continue what its folder holds, or has items without an answer."""


class RequestError(ServerError):
    """The request is refused. `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""


class NotJsonError(RequestError):
    """The content type is not JSON."""


class EncodedBodyError(RequestError):
    """The body is compressed."""


class BodyTooLargeError(RequestError):
    """The body is larger than the server takes. Raised while it arrives, not after."""


class RequestTimeoutError(RequestError):
    """The headers or the body did not come in time."""


class HeadersTooLargeError(RequestError):
    """The request line, the headers or the trailers are too many or too long. Raised while they arrive."""


class MalformedRequestError(RequestError):
    """What was sent is not HTTP/1.1, or may be read in two ways."""


class PipelineError(RequestError):
    """Too many requests wait on one connection."""


class TooManyConnectionsError(RequestError):
    """There are too many connections, and none of them waits."""

    retry_after_seconds = 1


class MisdirectedError(RequestError):
    """The Host is none of this server's names."""


class NoSuchRouteError(RequestError):
    """No such path."""


class WrongMethodError(RequestError):
    """The path exists, the method does not."""


class ModelNotFoundError(RequestError):
    """The model asked for is not the one served."""


class GuardNotFoundError(RequestError):
    """No guard of that name is attached."""


class ChangeRefusedError(RequestError):
    """What was asked of a guard cannot be done now, or not without a restart. Nothing has changed."""


class InvalidKeyError(RequestError):
    """No API key, or one that is not in the keys file."""


class ForbiddenError(RequestError):
    """The key is good, its role is not enough."""


class LimitError(RequestError):
    """The tenant has had what its policy allows in a minute, or at a time."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AbstainedError(RequestError):
    """An enforced guard fired and the server is set to answer with an error. `guard` is what the caller may see."""

    def __init__(self, message: str, guard: Mapping[str, object]) -> None:
        super().__init__(message)
        self.guard = guard


class ClientGoneError(RequestError):
    """The caller hung up before the answer was whole."""


class NotReadyError(ServerError):
    """Nothing can be generated now. `retry_after_seconds` is None where waiting will not help."""

    def __init__(self, message: str, retry_after_seconds: int | None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AuditFilesError(ServerError):
    """Files of an audit log cannot be read, or do not hold what a command needs of them."""


class AuditError(ServerError):
    """What must be recorded was not, and the server is set to give no answer then."""


class GenerationError(ServerError):
    """The engine ended an answer with an error; nothing of it may be sent. `faults`: guards that gave no reading."""

    def __init__(self, message: str, faults: tuple[GuardFault, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class UnverifiedError(GenerationError):
    """An answer, or a check, lacks a finite reading of a guard. Treated as an error, never as a pass."""


@dataclass(frozen=True)
class ErrorReply:
    """How one class of error looks from outside."""

    status: int
    type: str
    code: str
    tells: bool = True
    """Whether the error's own text goes to the caller: of what the caller caused, yes; of what broke here, no."""


ERROR_REPLIES: dict[type[Exception], ErrorReply] = {
    Exception: ErrorReply(500, "server_error", "internal_error", tells=False),
    RequestError: ErrorReply(400, "invalid_request_error", "invalid_request"),
    InvalidRequestError: ErrorReply(400, "invalid_request_error", "invalid_value"),
    NotJsonError: ErrorReply(415, "invalid_request_error", "unsupported_media_type"),
    EncodedBodyError: ErrorReply(415, "invalid_request_error", "unsupported_media_type"),
    BodyTooLargeError: ErrorReply(413, "invalid_request_error", "body_too_large"),
    RequestTimeoutError: ErrorReply(408, "invalid_request_error", "request_timeout"),
    HeadersTooLargeError: ErrorReply(431, "invalid_request_error", "headers_too_large"),
    MalformedRequestError: ErrorReply(400, "invalid_request_error", "malformed_request"),
    PipelineError: ErrorReply(400, "invalid_request_error", "too_many_pipelined"),
    TooManyConnectionsError: ErrorReply(429, "rate_limit_error", "too_many_connections"),
    MisdirectedError: ErrorReply(421, "invalid_request_error", "misdirected_request"),
    NoSuchRouteError: ErrorReply(404, "invalid_request_error", "unknown_url"),
    WrongMethodError: ErrorReply(405, "invalid_request_error", "method_not_allowed"),
    ModelNotFoundError: ErrorReply(404, "invalid_request_error", "model_not_found"),
    GuardNotFoundError: ErrorReply(404, "invalid_request_error", "guard_not_found"),
    ChangeRefusedError: ErrorReply(409, "invalid_request_error", "change_refused"),
    InvalidKeyError: ErrorReply(401, "invalid_request_error", "invalid_api_key"),
    ForbiddenError: ErrorReply(403, "invalid_request_error", "insufficient_permissions"),
    LimitError: ErrorReply(429, "rate_limit_error", "rate_limit_exceeded"),
    AbstainedError: ErrorReply(400, "invalid_request_error", "skill_abstained"),
    ClientGoneError: ErrorReply(499, "invalid_request_error", "client_disconnected"),
    NotReadyError: ErrorReply(503, "server_error", "not_ready"),
    AuditError: ErrorReply(503, "server_error", "audit_failure", tells=False),
    GenerationError: ErrorReply(500, "server_error", "engine_error", tells=False),
    UnverifiedError: ErrorReply(500, "server_error", "guard_error", tells=False),
    GuardReadingError: ErrorReply(500, "server_error", "guard_error", tells=False),
    EngineError: ErrorReply(500, "server_error", "engine_error", tells=False),
    PromptError: ErrorReply(400, "invalid_request_error", "invalid_prompt"),
    PromptTooLongError: ErrorReply(400, "invalid_request_error", "context_length_exceeded"),
    UnsupportedOptionError: ErrorReply(400, "invalid_request_error", "unsupported_parameter"),
    InvalidOptionError: ErrorReply(400, "invalid_request_error", "invalid_value"),
    # 429, not 503: the server works, and OpenAI's clients and load balancers back off on 429 where a 503
    # makes a balancer take the whole server out.
    EngineBusyError: ErrorReply(429, "rate_limit_error", "engine_busy"),
    EngineStoppedError: ErrorReply(503, "server_error", "engine_stopped", tells=False),
}


def reply_of(error: Exception) -> ErrorReply:
    """The entry of the nearest ancestor in the table."""
    return next(ERROR_REPLIES[cls] for cls in type(error).__mro__ if cls in ERROR_REPLIES)


def error_body(error: Exception, request_id: str) -> dict[str, object]:
    """OpenAI's error object. Where the fault is ours it holds the request id and nothing of the error's text."""
    shape = reply_of(error)
    message = str(error) if shape.tells else f"The server failed on this request. Quote request id {request_id}."
    body: dict[str, object] = {
        "message": message,
        "type": shape.type,
        "param": getattr(error, "param", None) if shape.tells else None,
        "code": shape.code,
    }
    if isinstance(error, AbstainedError):
        body["guard"] = dict(error.guard)
    return {"error": body}


def error_headers(error: Exception) -> dict[str, str]:
    """Headers that clients act on: when to come back, whether at all, and how to authenticate."""
    headers = {}
    if isinstance(error, EngineBusyError | LimitError | NotReadyError | TooManyConnectionsError):
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(error.retry_after_seconds)
        else:
            headers["x-should-retry"] = "false"  # OpenAI's SDKs obey it; they retry any other 5xx
    if isinstance(error, InvalidKeyError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTooLargeError):
        headers["connection"] = "close"  # the rest of the body will not be read
    return headers
