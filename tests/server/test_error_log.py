"""The log says of every error what the caller was told, code and field, and nothing that the caller wrote."""

import logging
import re
from pathlib import Path

import pytest

from server.auth import Role, new_key
from server.engines.errors import EngineBusyError
from server.engines.request import COMMON_OPTIONS
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, guard, hit
from tests.server.harness import (
    CHAT,
    CHECKS,
    COMPLETIONS,
    MODEL,
    RESPONSES,
    Exchange,
    chat,
    completion,
    keys_file,
    responses,
    serving,
)

pytestmark = pytest.mark.anyio

SECRET = "my_secret_plan"


def saying(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}, fields]}


def engine() -> ScriptedEngine:
    """Honours next to nothing."""
    return ScriptedEngine(options=COMMON_OPTIONS, max_model_tokens=600, tool_choices=frozenset())


LOGGED: list[tuple[str, object, str]] = [
    (CHAT, chat(temperature=SECRET), "400 code=invalid_value param=temperature"),
    (CHAT, {"model": MODEL}, "400 code=invalid_value param=messages"),
    (CHAT, [SECRET], "400 code=invalid_value param=-"),
    (CHAT, chat(n=99), "400 code=invalid_value param=n"),
    (CHAT, chat(model=SECRET), "404 code=model_not_found param=model"),
    (CHAT, chat(ignore_eos=True), "400 code=unsupported_parameter param=ignore_eos"),
    (CHAT, chat(include_stop_str_in_output=True), "400 code=unsupported_parameter param=include_stop_str_in_output"),
    (CHAT, chat(echo=True), "400 code=unsupported_parameter param=echo"),
    (CHAT, chat(guided_json=SECRET), "400 code=unsupported_parameter param=guided_json"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), "400 code=unsupported_parameter param=tools"),
    (CHAT, chat(response_format={"type": "json_object"}), "400 code=unsupported_parameter param=response_format"),
    (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
        "400 code=invalid_value param=response_format.json_schema.schema",
    ),
    (
        CHAT,
        chat(stream=True, stream_options={"continuous_usage_stats": SECRET}),
        "400 code=invalid_value param=stream_options.continuous_usage_stats",
    ),
    (CHAT, saying(role=SECRET, content=SECRET), "400 code=invalid_value param=messages[1].role"),
    (CHAT, saying(role="user"), "400 code=invalid_value param=messages[1].content"),
    (
        CHAT,
        saying(role="user", content=[{"type": SECRET}]),
        "400 code=invalid_value param=messages[1].content[0].type",
    ),
    (
        CHAT,
        saying(role="user", content="a", images=[SECRET]),
        "400 code=unsupported_parameter param=messages[1].images",
    ),
    (
        CHAT,
        saying(role="assistant", tool_calls=[{}]),
        "400 code=invalid_value param=messages[1].tool_calls[0].function",
    ),
    (CHAT, chat(**{SECRET: 1}), "400 code=invalid_value param=?"),
    (CHAT, chat(**{f"user.{SECRET}": 1}), "400 code=invalid_value param=user.?"),
    (CHAT, chat(**{f"user[{SECRET}]": 1}), "400 code=invalid_value param=?"),
    (CHAT, chat(**{"user\nINFO": 1}), "400 code=invalid_value param=?"),
    (CHAT, chat(response_format={"type": "text", SECRET: 1}), "400 code=invalid_value param=response_format.?"),
    (CHAT, chat(logit_bias={SECRET: 1}), "400 code=invalid_value param=logit_bias"),
    (CHAT, chat(SECRET * 99), "400 code=context_length_exceeded param=-"),
    (COMPLETIONS, completion([7, 256]), "400 code=invalid_prompt param=-"),
    (COMPLETIONS, completion(best_of=2), "400 code=unsupported_parameter param=best_of"),
    (COMPLETIONS, completion({"a": SECRET}), "400 code=invalid_value param=prompt"),
    (RESPONSES, responses(store=True), "400 code=unsupported_parameter param=store"),
    (RESPONSES, responses(metadata={SECRET: 1}), "400 code=invalid_value param=metadata.?"),
    (RESPONSES, responses([{"type": SECRET}]), "400 code=invalid_value param=input[0].type"),
    (RESPONSES, responses(**{SECRET: 1}), "400 code=invalid_value param=?"),
    (
        RESPONSES,
        responses(text={"format": {"type": "json_object"}}),
        "400 code=unsupported_parameter param=text.format",
    ),
    (CHECKS, {"model": MODEL}, "400 code=invalid_value param=prompt"),
    (f"/{SECRET}", {}, "404 code=unknown_url param=-"),
    ("/health", {}, "405 code=method_not_allowed param=-"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "logged"), LOGGED)
async def test_code_and_field(path: str, body: object, logged: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "skillguard")
    async with serving(engine()) as served:
        await served.post(path, body)
        status, _, why = logged.partition(" ")
        assert re.search(rf" {status} [0-9.]+s key=anonymous {re.escape(why)}\n", caplog.text), caplog.text
        assert SECRET not in caplog.text


async def test_errors_around_the_routes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skillguard")
    scripted = ScriptedEngine([Script(abstention(hit(guard())))])
    async with serving(scripted, abstain_style="error", max_body_bytes=1024) as served:
        await served.client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        await served.client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
        await served.post(CHAT, chat("x" * 2000))
        await served.post(CHAT, chat())
        scripted.refusal = EngineBusyError("full")
        await served.post(CHAT, chat())
        scripted.refusal = None
        scripted.alive = False
        await served.post(CHAT, chat())
    assert re.findall(r"(\d+) [0-9.]+s key=anonymous(.*)", caplog.text) == [
        ("400", " code=invalid_value param=-"),
        ("415", " code=unsupported_media_type param=-"),
        ("413", " code=body_too_large param=-"),
        ("400", " code=skill_abstained param=-"),
        ("429", " code=engine_busy param=-"),
        ("503", " code=not_ready param=-"),
    ]


async def test_keys(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "skillguard")
    key, entry = new_key("ann", Role.USER)
    async with serving(api_keys_file=keys_file(tmp_path, entry)) as served:
        for given in (SECRET, key):
            await served.client.get("/metrics", headers={"authorization": f"Bearer {given}"})
    assert re.findall(r"/metrics (\d+) [0-9.]+s key=(.*)", caplog.text) == [
        ("401", "- code=invalid_api_key param=-"),
        ("403", "- code=insufficient_permissions param=-"),
    ]
    assert SECRET not in caplog.text


async def test_a_caller_who_hung_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skillguard")
    async with serving() as served:
        exchange = Exchange(served.app, CHAT, [], complete=False)
        exchange.hang_up.set()
        await exchange.run()
    assert re.search(r"499 [0-9.]+s key=anonymous code=client_disconnected param=-", caplog.text)


async def test_what_is_no_error_has_no_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skillguard")
    async with serving() as served:
        await served.post(CHAT, chat())
        await served.post(CHAT, chat(stream=True))
    assert "200" in caplog.text
    assert "code=" not in caplog.text
