"""The served OpenAPI document, and a server that is asked whatever it says may be asked, and what it says may not."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from benchmarks.fuzz.protocol import GOOD
from server.auth import Role, new_key
from server.errors import ERROR_REPLIES
from tests.server.harness import CHAT, COMPLETIONS, RESPONSES, keys_file, listening, serving
from tests.server.judging import cook

pytestmark = pytest.mark.anyio
ASKS_NOTHING = ("suffix", "store")
"""Fields that are let through with these values only, and are no fields of ours."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that anybody is an operator of, in a thread of its own."""
    found: list[str] = []
    ready, over = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with listening(cook(), anonymous_role="operator") as address:
            found.extend([address])
            ready.set()
            await over.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[run()], daemon=True)
    thread.start()
    assert ready.wait(30), "the server did not start"
    yield found[0].removesuffix("/v1")
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="module")
def described(url: str) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_is_asked_is_answered_as_described(described: BaseSchema, mode: GenerationMode) -> None:
    """By all checks of schemathesis but one: what fields must have to do with each other is in no schema."""
    asked = 0
    for found in described.get_all_operations():
        operation = found.ok() if isinstance(found, Ok) else pytest.fail(str(found.err()))

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=12, suppress_health_check=list(HealthCheck))
        def ask(case: Case[Any]) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        with suppress(Unsatisfiable):  # what takes nothing can be asked nothing wrong
            ask()
    assert asked > 100


def test_an_answer_that_is_not_described_is_found(url: str) -> None:
    """Positive control."""
    document = httpx.get(f"{url}/openapi.json").json()
    del document["paths"]["/tokenize"]["post"]["responses"]["400"]
    operation = schemathesis.openapi.from_dict({**document, "servers": [{"url": url}]})["/tokenize"]["POST"]
    case = operation.Case(body={"prompt": 5}, media_type="application/json")
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        case.call_and_validate(base_url=url)


@pytest.mark.parametrize(("path", "body"), GOOD, ids=lambda each: each if isinstance(each, str) else "")
def test_what_is_taken_is_described(url: str, path: str, body: dict[str, Any]) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = {**asked, "components": document["components"]}
    body = {name: value for name, value in body.items() if name not in ASKS_NOTHING}
    assert jsonschema_rs.is_valid(schema, body)
    assert not jsonschema_rs.is_valid(schema, {**body, "frobnicate": 1}), "positive control"


async def test_every_error_is_described_and_who_streams() -> None:
    async with serving(cook(), anonymous_role="operator") as served:
        paths = (await served.client.get("/openapi.json")).json()["paths"]
    statuses = {str(reply.status) for reply in ERROR_REPLIES.values()} - {"499", "409"}
    for path, methods in paths.items():
        for method, operation in methods.items():
            wanted = statuses if "requestBody" in operation else statuses - {"413", "415"}
            assert wanted <= operation["responses"].keys(), (method, path)
    streams = {
        path
        for path, methods in paths.items()
        if any("text/event-stream" in of["responses"]["200"].get("content", {}) for of in methods.values())
    }
    assert streams == {CHAT, COMPLETIONS, RESPONSES}


async def test_where_there_are_keys_the_document_says_so(tmp_path: Path) -> None:
    key, entry = new_key("o", Role.OPERATOR)
    async with serving(cook(), api_keys_file=keys_file(tmp_path, entry)) as served:
        answer = await served.client.get("/openapi.json", headers={"authorization": f"Bearer {key}"})
        paths = answer.json()["paths"]
    assert paths[CHAT]["post"]["security"] == [{"bearer": []}]
    assert "security" not in paths["/health"]["get"]
