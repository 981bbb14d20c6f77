"""A key of a request's JSON may be there once, at every depth: a gateway in front may have looked at the other."""

import json

import pytest

from server.engines.scripted.engine import ScriptedEngine
from server.errors import InvalidRequestError
from server.routes.posted import each_once
from tests.server.harness import ATTRIBUTIONS, CHAT, CHECKS, COMPLETIONS, GUARDRAIL, MODERATIONS, RESPONSES, serving

pytestmark = pytest.mark.anyio

TWICE = {
    COMPLETIONS: '{"prompt": "first", "prompt": "last"}',
    CHAT: '{"messages": [{"role": "user", "content": "first", "content": "last"}]}',
    RESPONSES: '{"input": "first", "input": "last"}',
    CHECKS: '{"prompt": "first", "prompt": "last"}',
    ATTRIBUTIONS: '{"prompt": "first", "prompt": "last"}',
    MODERATIONS: '{"input": "first", "input": "last"}',
    GUARDRAIL: '{"texts": ["first"], "texts": ["last"], "input_type": "request"}',
    "/tokenize": '{"prompt": "first", "prompt": "last"}',
    "/detokenize": '{"tokens": [97], "tokens": [98]}',
}


@pytest.mark.parametrize("path", TWICE)
async def test_a_key_that_is_there_twice_is_refused(path: str) -> None:
    async with serving(anonymous_role="operator") as served:
        response = await served.client.post(path, content=TWICE[path], headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        assert "more than once" in response.json()["error"]["message"]
        assert served.engine.submitted == []


def test_looking_for_the_key_is_no_attack_of_its_own() -> None:
    class Key(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    count = 2000
    with pytest.raises(InvalidRequestError, match="'1999' more than once"):
        each_once([(Key(number), None) for number in range(count)] + [(Key(count - 1), None)])
    assert Key.compared < 10 * count


async def test_the_same_key_in_two_objects_is_two_keys() -> None:
    async with serving() as served:
        body = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
        response = await served.client.post(
            CHAT, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert response.status_code == 200


async def test_what_is_no_json_is_still_said_so() -> None:
    async with serving() as served:
        headers = {"content-type": "application/json"}
        for body, says in ((b"{", "not valid JSON"), (b'{"prompt": "\xff"}', "not valid JSON in UTF-8")):
            response = await served.client.post(COMPLETIONS, content=body, headers=headers)
            assert response.status_code == 400
            assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 2049}, "2048"),
        (RESPONSES, {"input": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        (CHECKS, {"messages": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_000}]}, "10000 objects"),
        (GUARDRAIL, {"input_type": "request", "texts": ["a"], "tools": [{"a": {}}] * 5_000}, "10000 objects"),
    ],
)
async def test_more_objects_than_anybody_has_are_not_looked_at(path: str, body: dict[str, object], says: str) -> None:
    async with serving(anonymous_role="operator") as served:
        error = await served.error(path, body)
        assert error["status"] == 400
        assert says in error["message"]
        assert served.engine.submitted == []


async def test_as_many_messages_as_there_may_be_are_taken() -> None:
    async with serving(ScriptedEngine(max_model_tokens=1 << 15)) as served:
        response = await served.post(CHAT, {"messages": [{"role": "user", "content": ""}] * 2048, "max_tokens": 1})
        assert response.status_code == 200, response.text
