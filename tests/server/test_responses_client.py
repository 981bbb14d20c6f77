"""The official client's `responses` over a real socket: create, stream, parse, tools and their history."""

import json
from typing import Any

import openai
import pydantic
import pytest

from guards.core.verdict import Stage
from server.engines.events import FinishReason
from server.engines.request import GrammarKind
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.test_openai_client import TEXT, Dish, client_of, engine

pytestmark = pytest.mark.anyio


async def stream_of(client: openai.AsyncOpenAI, question: str, **fields: Any) -> list[Any]:
    return [
        event async for event in await client.responses.create(model="scripted", input=question, stream=True, **fields)
    ]


async def test_create() -> None:
    async with client_of(engine()) as client:
        async with openai.AsyncOpenAI(
            api_key="none", base_url=client.base_url, max_retries=0, _strict_response_validation=True
        ) as strict:
            response = await strict.responses.create(model="scripted", input="hi", metadata={"a": "b"}, store=False)
        assert (response.output_text, response.status, response.error) == ("Hello there.", "completed", None)
        assert response.metadata == {"a": "b"}
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == (20, 3)


async def test_stream() -> None:
    async with client_of(engine()) as client:
        events = await stream_of(client, "hi")
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
            "Hello",
            " there",
            ".",
        ]
        assert events[-1].response.output_text == "Hello there."
        async with client.responses.stream(model="scripted", input="hi") as stream:
            final = await stream.get_final_response()
        assert (final.output_text, final.usage and final.usage.output_tokens) == ("Hello there.", 3)


async def test_abstention() -> None:
    async with client_of(engine()) as client:
        response = await client.responses.create(model="scripted", input="cook")
        assert (response.status, response.output_text) == ("incomplete", TEXT)
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "content_filter"
        assert response.model_extra is not None
        assert response.model_extra["guard"]["skill"] == "cooking"
        events = await stream_of(client, "later")
        assert (events[-1].type, events[-1].response.output_text) == ("response.incomplete", f"Take\n\n{TEXT}")
    async with client_of(engine(), abstain_style="refusal") as client:
        response = await client.responses.create(model="scripted", input="cook")
        assert (response.status, response.output_text) == ("completed", "")
        parts = [part for item in response.output if item.type == "message" for part in item.content]
        assert [part.refusal for part in parts if part.type == "refusal"] == [TEXT]
        async with client.responses.stream(model="scripted", input="later") as stream:
            seen = [event async for event in stream]
            final = await stream.get_final_response()
        assert [event.delta for event in seen if event.type == "response.refusal.delta"] == [TEXT]
        assert [part.type for part in final.output[0].content] == ["output_text", "refusal"]  # type: ignore[union-attr]


async def test_error_style() -> None:
    async with client_of(engine(), abstain_style="error") as client:
        with pytest.raises(openai.BadRequestError, match="withholds") as caught:
            await client.responses.create(model="scripted", input="cook")
        assert caught.value.code == "skill_abstained"
        events = await stream_of(client, "later")
        assert (events[-1].type, events[-1].response.error.code) == ("response.failed", "invalid_prompt")


async def test_failing_stream() -> None:
    async with client_of(engine()) as client:
        events = await stream_of(client, "break")
        assert (events[-1].type, events[-1].response.error.code) == ("response.failed", "server_error")
        with pytest.raises(RuntimeError, match=r"response\.completed"):
            async with client.responses.stream(model="scripted", input="break") as stream:
                await stream.get_final_response()


async def test_parse_sends_a_schema() -> None:
    scripts = [
        Script(abstention(hit(guard())), when=lambda prompt: "cook" in prompt),
        Script(answer('{"name": ', '"soup"}')),
    ]
    scripted = ScriptedEngine(scripts)
    async with client_of(scripted, abstain_style="refusal") as client:
        parsed = await client.responses.parse(model="scripted", input="hi", text_format=Dish)
        assert parsed.output_parsed == Dish(name="soup")
        grammar = scripted.submitted[0].sampling.grammar
        assert grammar is not None
        assert (grammar.kind, json.loads(grammar.text)["required"]) == (GrammarKind.JSON_SCHEMA, ["name"])
        async with client.responses.stream(model="scripted", input="hi", text_format=Dish) as stream:
            assert (await stream.get_final_response()).output_parsed == Dish(name="soup")
        refused = await client.responses.parse(model="scripted", input="cook", text_format=Dish)
        assert (refused.output_parsed, refused.status) == (None, "completed")
    async with client_of(ScriptedEngine(scripts)) as client:  # why the style `refusal` exists
        with pytest.raises(pydantic.ValidationError):
            await client.responses.parse(model="scripted", input="cook", text_format=Dish)


CALLING = ("Look: ", "[[Dish|", '{"name": ', '"soup"}', "]]", '[[Dish|{"name": "pie"}]]')


async def test_tools_and_their_history() -> None:
    """Whole, parsed and streamed, each sent back with results, comes to one prompt."""
    scripted = ScriptedEngine(
        [Script(answer(*CALLING), when=lambda prompt: "sunny" not in prompt), Script(answer("Ah."))]
    )
    tool: Any = {
        "type": "function",
        "name": "Dish",
        "parameters": Dish.model_json_schema(),
        "strict": True,
    }
    async with client_of(scripted) as client:
        asked: dict[str, Any] = {"model": "scripted", "tools": [tool]}
        answers: list[Any] = [await client.responses.create(**asked, input="hi")]
        answers.append(await client.responses.parse(**asked, input="hi"))
        async with client.responses.stream(**asked, input="hi") as stream:
            answers.append(await stream.get_final_response())
        for response in answers:
            calls = [item for item in response.output if item.type == "function_call"]
            assert [call.arguments for call in calls] == ['{"name": "soup"}', '{"name": "pie"}']
            if hasattr(calls[0], "parsed_arguments"):
                assert calls[1].parsed_arguments == {"name": "pie"}
            results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
            history = [{"role": "user", "content": "hi"}, *response.output, *results]
            again = await client.responses.create(**asked, input=history)
            assert again.output_text == "Ah."
        prompts = {request.prompt_token_ids for request in scripted.submitted[3:]}
        assert len(prompts) == 1
        shown = bytes(prompts.pop()).decode()
        assert 'assistant: Look: [[Dish|{"name": "soup"}]][[Dish|{"name": "pie"}]]\ntool call_0: sunny\n' in shown


async def test_call_that_was_cut_short_is_taken_back() -> None:
    scripted = ScriptedEngine([Script(answer(*CALLING[:3], reason=FinishReason.LENGTH))])
    async with client_of(scripted) as client:
        asked: dict[str, Any] = {"model": "scripted", "tools": [{"type": "function", "name": "Dish"}]}
        response = await client.responses.create(**asked, input="hi")
        assert (response.status, response.output[-1].type) == ("incomplete", "function_call")
        await client.responses.create(**asked, input=[{"role": "user", "content": "hi"}, *response.output])
        shown = bytes(scripted.submitted[-1].prompt_token_ids).decode()
        assert json.dumps({"arguments": '{"name": '}) in shown


async def test_abstention_in_the_middle_of_a_call() -> None:
    scripts = [Script(abstention(hit(guard(), Stage.GENERATION), *CALLING[:3]))]
    asked: dict[str, Any] = {"model": "scripted", "input": "hi", "tools": [{"type": "function", "name": "Dish"}]}
    async with client_of(ScriptedEngine(scripts), abstain_style="refusal") as client:
        async with client.responses.stream(**asked) as stream:
            final = await stream.get_final_response()
        assert [item.type for item in final.output] == ["message", "message"]
        whole = await client.responses.create(**asked)
        assert [item.type for item in whole.output] == ["message"]


async def test_errors_have_the_clients_classes() -> None:
    async with client_of(engine()) as client:
        for fields in {"store": True}, {"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "c"}:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="scripted", input="hi", **fields)
            assert (caught.value.param, caught.value.code) == (next(iter(fields)), "unsupported_parameter")
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await client.responses.create(model="gpt-4", input="hi")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")
