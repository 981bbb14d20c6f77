"""The table from error classes to answers."""

import importlib
from collections.abc import Iterator

import pytest

from guards.errors import SkillguardError
from server.engines.errors import EngineBusyError, EngineError, EngineFlagError, EngineStoppedError, PromptTooLongError
from server.errors import (
    ERROR_REPLIES,
    AbstainedError,
    BodyTooLargeError,
    InvalidKeyError,
    InvalidRequestError,
    LimitError,
    NotReadyError,
    UnverifiedError,
    error_body,
    error_headers,
    reply_of,
)


def subclasses(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


ERRORS_MODULES = ("guards.errors", "server.errors", "server.engines.errors")
ALL_ERRORS = [cls for cls in subclasses(SkillguardError) if cls.__module__ in ERRORS_MODULES]


@pytest.mark.parametrize("cls", ALL_ERRORS)
def test_every_error_has_a_consistent_shape(cls: type[Exception]) -> None:
    shape = reply_of(cls.__new__(cls))
    assert 400 <= shape.status < 600
    assert (shape.type == "server_error") == (shape.status >= 500)
    # What broke here stays here; only "not ready" is written for callers.
    assert shape.tells == (shape.status < 500 or issubclass(cls, NotReadyError))


def test_the_servers_errors_live_in_one_module() -> None:
    """So that the walk above sees all of them."""
    importlib.import_module("server.app")
    strays = [cls for cls in subclasses(SkillguardError) if cls.__module__.startswith("server.")]
    assert {cls.__module__ for cls in strays} <= set(ERRORS_MODULES)


def test_every_entry_of_the_table_is_an_error_of_ours() -> None:
    assert all(cls is Exception or issubclass(cls, SkillguardError) for cls in ERROR_REPLIES)


def test_nearest_ancestor_decides() -> None:
    class FullerError(EngineBusyError):
        pass

    assert reply_of(FullerError("full")) is ERROR_REPLIES[EngineBusyError]
    assert reply_of(EngineFlagError("odd")) is ERROR_REPLIES[EngineError]
    assert reply_of(KeyError("odd")) is ERROR_REPLIES[Exception]


def test_our_faults_are_not_described() -> None:
    for error in (RuntimeError("/etc/secret"), UnverifiedError("layer 3 is NaN"), EngineStoppedError("CUDA")):
        body = error_body(error, "req_1")
        assert str(error) not in str(body)
        assert "req_1" in str(body)


def test_what_the_caller_did_is_described() -> None:
    assert error_body(InvalidRequestError("n: got 9", "n"), "req_1") == {
        "error": {"message": "n: got 9", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
    assert error_body(PromptTooLongError("too long"), "req_1") == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
        }
    }


def test_abstention_carries_its_guard() -> None:
    body = error_body(AbstainedError("withheld", {"skill": "cooking"}), "req_1")
    assert body["error"] == {
        "message": "withheld",
        "type": "invalid_request_error",
        "param": None,
        "code": "skill_abstained",
        "guard": {"skill": "cooking"},
    }


def test_headers_tell_clients_what_to_do() -> None:
    assert error_headers(EngineBusyError("full", retry_after_seconds=3)) == {"retry-after": "3"}
    assert error_headers(LimitError("enough", 7)) == {"retry-after": "7"}
    assert error_headers(NotReadyError("loading", 5)) == {"retry-after": "5"}
    assert error_headers(NotReadyError("failed", None)) == {"x-should-retry": "false"}
    assert error_headers(InvalidKeyError("who?")) == {"www-authenticate": "Bearer"}
    assert error_headers(BodyTooLargeError("big")) == {"connection": "close"}
    assert error_headers(InvalidRequestError("bad")) == {}
