"""The official client over a real socket: what it makes of answers, abstentions and errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from guards.core.verdict import Stage
from server.auth import Role, new_key
from server.engines.errors import EngineBusyError
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.request import COMMON_OPTIONS, Grammar, GrammarKind
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.harness import keys_file, listening

pytestmark = pytest.mark.anyio

TEXT = "That is withheld."


def engine() -> ScriptedEngine:
    """ "cook" abstains at the prompt, "later" after a token, "break" fails after one, "hang" never ends."""
    broken = Finish(FinishReason.ERROR, 0, 1, verified=False, error="secret")
    return ScriptedEngine(
        [
            Script(abstention(hit(guard())), when=lambda prompt: "cook" in prompt),
            Script(abstention(hit(guard(), Stage.GENERATION), "Take"), when=lambda prompt: "later" in prompt),
            Script((Chunk("Take", 1), broken), when=lambda prompt: "break" in prompt),
            Script((Chunk("Take", 1), asyncio.Event()), when=lambda prompt: "hang" in prompt),
            Script(answer("Hello", " there", ".")),
        ]
    )


@asynccontextmanager
async def client_of(
    engine: ScriptedEngine, api_key: str = "none", **settings: object
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        listening(engine, **{"abstain_text": TEXT, **settings}) as base_url,
        openai.AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0) as client,
    ):
        yield client


async def ask(client: openai.AsyncOpenAI, content: str) -> openai.types.chat.ChatCompletion:
    return await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": content}])


async def stream_of(client: openai.AsyncOpenAI, content: str) -> list[str | None]:
    """The content deltas, then the finish reason."""
    seen: list[str | None] = []
    async for chunk in await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": content}], stream=True
    ):
        choice = chunk.choices[0]
        seen.append(choice.finish_reason or choice.delta.content)
    return seen


async def test_answers() -> None:
    async with client_of(engine()) as client:
        chat = await ask(client, "hi")
        assert chat.choices[0].message.content == "Hello there."
        assert chat.choices[0].message.refusal is None
        text = await client.completions.create(model="scripted", prompt="hi", n=2, seed=1)
        assert [choice.text for choice in text.choices] == ["Hello there."] * 2
        assert [model.id async for model in client.models.list()] == ["scripted"]
        assert await stream_of(client, "hi") == ["", "Hello", " there", ".", "stop"]


async def test_stream_helper_puts_the_answer_together() -> None:
    async with (
        client_of(engine()) as client,
        client.chat.completions.stream(
            model="scripted",
            messages=[{"role": "user", "content": "hi"}],
            stream_options={"include_usage": True},
        ) as stream,
    ):
        final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Hello there."
        assert final.usage is not None
        assert final.usage.completion_tokens == 3


async def test_abstention() -> None:
    async with client_of(engine()) as client:
        choice = (await ask(client, "cook")).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("content_filter", TEXT)
        assert choice.message.refusal is None
        assert choice.model_extra is not None
        assert choice.model_extra["guard"]["skill"] == "cooking"
        assert await stream_of(client, "cook") == ["", TEXT, "content_filter"]
        assert await stream_of(client, "later") == ["", "Take", f"\n\n{TEXT}", "content_filter"]


async def test_abstained_answer_can_be_sent_back_as_history() -> None:
    async with client_of(engine()) as client:
        message = (await ask(client, "cook")).choices[0].message
        history = [{"role": "user", "content": "hm"}, message, {"role": "user", "content": "then sing"}]
        again = await client.chat.completions.create(model="scripted", messages=history)  # type: ignore[arg-type]
        assert again.choices[0].message.content == "Hello there."


async def test_parse_raises_on_content_filter_and_not_on_refusal() -> None:
    """Why `abstain_style: refusal` exists."""
    async with client_of(engine()) as client:
        with pytest.raises(openai.ContentFilterFinishReasonError):
            await client.chat.completions.parse(model="scripted", messages=[{"role": "user", "content": "cook"}])
    async with client_of(engine(), abstain_style="refusal") as client:
        parsed = await client.chat.completions.parse(model="scripted", messages=[{"role": "user", "content": "cook"}])
        message = parsed.choices[0].message
        assert (message.content, message.refusal) == (None, TEXT)


class Dish(pydantic.BaseModel):
    """What the client describes to the server and makes of its answer."""

    name: str


async def test_parse_sends_a_schema() -> None:
    scripted = ScriptedEngine([Script(answer('{"name": ', '"soup"}'))])
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    async with client_of(scripted) as client:
        parsed = await client.chat.completions.parse(model="scripted", messages=messages, response_format=Dish)
        assert parsed.choices[0].message.parsed == Dish(name="soup")
        grammar = scripted.submitted[0].sampling.grammar
        assert grammar is not None
        assert (grammar.kind, json.loads(grammar.text)["required"]) == (GrammarKind.JSON_SCHEMA, ["name"])
    async with client_of(ScriptedEngine(options=COMMON_OPTIONS)) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.parse(model="scripted", messages=messages, response_format=Dish)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")


CALLING = ("Look: ", "[[Dish|", '{"name": ', '"soup"}', "]]", "[[Dish|{", '"name": "pie"}]]')


async def test_tool_calls() -> None:
    """Whole, streamed, by both helpers, and sent back with their results."""
    scripted = ScriptedEngine(
        [Script(answer(*CALLING), when=lambda prompt: "sunny" not in prompt), Script(answer("Ah."))]
    )
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    dish = openai.pydantic_function_tool(Dish)
    async with client_of(scripted) as client:
        chat = await client.chat.completions.create(model="scripted", messages=messages, tools=[dish])
        (choice,) = chat.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Look: ")
        calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
        assert [call.function.arguments for call in calls] == ['{"name": "soup"}', '{"name": "pie"}']

        parsed = await client.chat.completions.parse(model="scripted", messages=messages, tools=[dish])
        parsed_calls = parsed.choices[0].message.tool_calls or []
        assert [call.function.parsed_arguments for call in parsed_calls] == [Dish(name="soup"), Dish(name="pie")]
        async with client.chat.completions.stream(model="scripted", messages=messages, tools=[dish]) as stream:
            final = (await stream.get_final_completion()).choices[0]
        assert final.finish_reason == "tool_calls"
        streamed = final.message.tool_calls or []
        assert [call.function.parsed_arguments for call in streamed] == [Dish(name="soup"), Dish(name="pie")]
        assert [call.id for call in streamed] == [call.id for call in calls]

        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        history = [*messages, choice.message, *results]
        again = await client.chat.completions.create(model="scripted", messages=history, tools=[dish])
        assert again.choices[0].message.content == "Ah."
        assert again.choices[0].message.tool_calls is None


@pytest.mark.parametrize("written", ['{"name": "so', "{", "true", ""])
async def test_calls_cut_short_can_be_sent_back(written: str) -> None:
    """What an answer that met its limit had written, as each of the client's ways puts it together."""
    steps = answer("[[Dish|", written, reason=FinishReason.LENGTH)
    scripted = ScriptedEngine([Script(steps, when=lambda prompt: "tool " not in prompt), Script(answer("Ah."))])
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    dish = {"type": "function", "function": {"name": "Dish"}}
    asked: dict[str, Any] = {"model": "scripted", "tools": [dish]}
    async with client_of(scripted) as client:
        created = (await client.chat.completions.create(messages=messages, **asked)).choices[0].message
        async with client.chat.completions.stream(messages=messages, **asked) as stream:
            async for _ in stream:
                pass
            streamed = stream.current_completion_snapshot.choices[0].message
        for message in created, streamed, created.model_dump(), streamed.model_dump():
            history = [*messages, message, {"role": "tool", "tool_call_id": "call_0", "content": "none"}]
            again = await client.chat.completions.create(messages=history, **asked)
            assert again.choices[0].message.content == "Ah."
        prompts = {request.prompt_token_ids for request in scripted.submitted[2:]}
        assert len(prompts) == 1
        assert json.dumps(written)[1:-1] in bytes(prompts.pop()).decode()


async def test_abstention_in_the_middle_of_a_tool_call() -> None:
    scripts = [Script(abstention(hit(guard(), Stage.GENERATION), *CALLING[:3]))]
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    dish = openai.pydantic_function_tool(Dish)
    async with client_of(ScriptedEngine(scripts)) as client:
        chat = await client.chat.completions.create(model="scripted", messages=messages, tools=[dish])
        assert (chat.choices[0].finish_reason, chat.choices[0].message.tool_calls) == ("content_filter", None)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            await client.chat.completions.parse(model="scripted", messages=messages, tools=[dish])
    async with client_of(ScriptedEngine(scripts), hold_back_tokens=3) as client:
        stream = await client.chat.completions.create(model="scripted", messages=messages, tools=[dish], stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        assert [chunk.delta.content for chunk in chunks] == ["", TEXT, None]
        assert all(chunk.delta.tool_calls is None for chunk in chunks)


async def test_fields_of_vllm() -> None:
    scripted = engine()
    async with client_of(scripted) as client:
        extra = {"top_k": 5, "structured_outputs": {"choice": ["a", "b"]}}
        await client.completions.create(model="scripted", prompt="hi", logit_bias={"5": -100}, extra_body=extra)
        sampling = scripted.submitted[0].sampling
        assert (sampling.top_k, sampling.logit_bias) == (5, {5: -100.0})
        assert sampling.grammar == Grammar(GrammarKind.CHOICE, '["a", "b"]')


async def test_error_style() -> None:
    async with client_of(engine(), abstain_style="error") as client:
        with pytest.raises(openai.BadRequestError, match="withholds") as caught:
            await ask(client, "cook")
        assert caught.value.code == "skill_abstained"
        with pytest.raises(openai.APIError, match="withholds"):
            await stream_of(client, "later")


async def test_failing_stream_raises() -> None:
    async with client_of(engine()) as client:
        with pytest.raises(openai.APIError, match="Quote request id") as caught:
            await stream_of(client, "break")
        assert "secret" not in str(caught.value)


async def test_errors_have_the_clients_classes() -> None:
    scripted = engine()
    async with client_of(scripted) as client:
        with pytest.raises(openai.BadRequestError, match="temperature") as bad:
            await client.completions.create(model="scripted", prompt="a", temperature=5)
        assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
        assert bad.value.request_id is not None
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await client.completions.create(model="gpt-4", prompt="a")
        scripted.refusal = EngineBusyError("full")
        with pytest.raises(openai.RateLimitError):
            await ask(client, "hi")
        scripted.refusal = None
        scripted.alive = False
        with pytest.raises(openai.InternalServerError) as dead:
            await ask(client, "hi")
        assert dead.value.status_code == 503


async def test_key(tmp_path: Path) -> None:
    key, entry = new_key("ann", Role.USER)
    async with client_of(engine(), api_key=key, api_keys_file=keys_file(tmp_path, entry)) as client:
        assert (await ask(client, "hi")).choices[0].message.content == "Hello there."
        with pytest.raises(openai.AuthenticationError) as caught:
            await ask(client.with_options(api_key="sk-wrong"), "hi")
        assert caught.value.code == "invalid_api_key"


async def test_leaving_a_stream_cancels_it() -> None:
    """Over a socket nothing tells the client when the server noticed; the engine does."""
    scripted = engine()
    noticed = asyncio.Event()

    class Noticing(list[str]):
        def append(self, request_id: str) -> None:
            super().append(request_id)
            noticed.set()

    scripted.cancelled = Noticing()
    async with client_of(scripted) as client:
        stream = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hang"}], stream=True
        )
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        await stream.close()
        await asyncio.wait_for(noticed.wait(), timeout=10)
        assert scripted.cancelled == [scripted.submitted[0].request_id]
