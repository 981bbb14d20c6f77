"""What an operator opened by choice is said where the server says what runs."""

from pathlib import Path
from typing import Any

import pytest

from server.cli.serve import banner
from server.config import ServerConfig
from server.engines.options import EmbeddedOptions, VllmOptions
from tests.server.harness import serving

pytestmark = pytest.mark.anyio

VLLM = VllmOptions(model="model")
RUNNER = "a model runner that guards were not tested with is taken (--allow-untested-runner): canaries alone stand for"
UNRECORDED = "what cannot be recorded is answered all the same (--audit-failure answer)"


async def said(options: EmbeddedOptions | VllmOptions = VLLM, **settings: Any) -> str:
    async with serving(**settings) as served:
        return banner(served.readiness, "http://test", ServerConfig(**settings), options)


async def test_an_untested_runner_that_is_taken_is_said() -> None:
    assert f"  note   {RUNNER}" in await said(VLLM.model_copy(update={"allow_untested_runner": True}))
    for options in (VLLM, EmbeddedOptions(model="model")):
        assert "--allow-untested-runner" not in await said(options)


async def test_answers_without_their_record_are_said(tmp_path: Path) -> None:
    assert f"  note   {UNRECORDED}\n" in await said(audit_dir=tmp_path, audit_failure="answer")
    assert "--audit-failure" not in await said(audit_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "noted"), [({}, False), ({"host": "0.0.0.0"}, True), ({"anonymous_role": "operator"}, True)]
)
async def test_no_keys_are_said_where_more_than_this_machines_users_may_ask(
    settings: dict[str, Any], noted: bool
) -> None:
    assert ("  note   no keys: " in await said(**settings)) is noted
