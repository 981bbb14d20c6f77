"""Tools on a running vLLM: forced calls are JSON that fits, and a guard ends an answer with calls like any other."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from guards.core.verdict import GuardMode, Stage
from server.engines.errors import InvalidOptionError
from server.engines.events import Chunk, FinishReason
from server.engines.options import VllmOptions
from server.engines.request import EngineRequest, Message, Sampling, ToolPlan
from server.engines.tools import Tool, ToolChoice, ToolUse
from tests.server.engines.vllm.live import MODEL, OTHERS, SUMS, Live, live, on_vllm

TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ '<|system|>' + tool | tojson + eos_token }}{% endfor %}"
    "{% for m in messages %}{{ '<|' + ('user' if m.role == 'tool' else m.role) + '|>' + m.content | trim }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER, CLOCK = Tool("weather", "Looks out.", SCHEMA), Tool("clock")
NOTHING = dict.fromkeys(("ksd-mathematics", "ksd-en"), GuardMode.SHADOW)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, cube: str, sums_cube: str) -> Iterator[Live]:
    """The demo with a chat template that shows tools, and with cubes, which look at the last token alone."""
    folder = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    options = VllmOptions(model=str(folder), tool_call_parser="hermes")
    with live(on_vllm(sums_cube, cube, flags=("--enforce-eager",), options=options)) as running:
        yield running


def use(choice: ToolChoice, *, parallel: bool = True, tools: tuple[Tool, ...] = (WEATHER, CLOCK)) -> ToolUse:
    return ToolUse(tools, choice, "weather" if choice is ToolChoice.NAMED else None, parallel)


def sampling(engine: Live, plan: ToolPlan) -> Sampling:
    """Greedy, without the blank tokens that JSON allows and a model of this size prefers to JSON."""
    tokenizer = engine.engine._codec.tokenizer  # type: ignore[attr-defined]
    blank = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()]
    return Sampling(max_tokens=80, temperature=0, grammar=plan.grammar, logit_bias=dict.fromkeys(blank, -100.0))


def test_what_is_honoured(engine: Live) -> None:
    assert engine.engine.info.tool_choices == frozenset(ToolChoice)


@pytest.mark.parametrize("choice", [ToolChoice.REQUIRED, ToolChoice.NAMED])
def test_forced_calls_fit_their_schema(engine: Live, choice: ToolChoice) -> None:
    asked = use(choice, parallel=False, tools=(WEATHER,))
    plan = engine.engine.plan_tools(asked)
    prompt = engine.engine.encode_chat([Message("user", OTHERS[0])], asked.tools)
    (answer,) = engine.draw([prompt], sampling(engine, plan), [NOTHING])
    assert answer.finish.reason is FinishReason.STOP
    (call,) = plan.parser().whole(answer.text).calls
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    parser = plan.parser()
    pieces = [parser.push(chunk.text, chunk.token_ids, final=False) for chunk in answer.chunks]
    pieces.append(parser.push("", (), final=True))
    arguments = "".join(each.arguments for piece in pieces for each in piece.calls)
    assert json.loads(arguments) == json.loads(call.arguments)


@pytest.mark.parametrize("choice", list(ToolChoice))
def test_a_forgotten_skill_stays_forgotten_where_tools_are_called(engine: Live, choice: ToolChoice) -> None:
    asked = use(choice)
    plan = engine.engine.plan_tools(asked)
    prompts = [engine.engine.encode_chat([Message("user", question)], asked.tools) for question in SUMS]
    guarded = engine.draw(prompts, sampling(engine, plan))
    assert [(each.finish.reason, each.text) for each in guarded] == [(FinishReason.ABSTAIN, "")] * len(SUMS)
    unguarded = engine.draw(prompts, sampling(engine, plan), [NOTHING] * len(SUMS))
    assert all(each.finish.reason is not FinishReason.ABSTAIN and each.text for each in unguarded)


def test_a_guard_that_fires_within_a_call(engine: Live) -> None:
    plan = engine.engine.plan_tools(use(ToolChoice.NAMED))
    prompt = engine.chat(OTHERS[0])
    (stopped,) = engine.draw([prompt], replace(sampling(engine, plan), logit_bias={}))
    (whole,) = engine.draw([prompt], replace(sampling(engine, plan), logit_bias={}), [NOTHING])
    hit = stopped.finish.abstained_on
    assert hit is not None
    assert hit.score.stage is Stage.GENERATION
    assert whole.text.startswith(stopped.text)
    assert len(whole.text) > len(stopped.text) > 0


def test_special_tokens_are_text_where_a_parser_reads_them(engine: Live) -> None:
    """Also then a stop token is none."""
    tokenizer = engine.engine._codec.tokenizer  # type: ignore[attr-defined]
    (first,) = tokenizer.encode("<|bos|>", add_special_tokens=False)
    drawn = Sampling(max_tokens=3, temperature=0, allowed_token_ids=(first,))

    async def text(special: bool) -> str:
        request = EngineRequest(f"special-{special}", engine.chat(OTHERS[0]), drawn, engine.policy(NOTHING), special)
        return "".join([event.text async for event in engine.engine.submit(request) if isinstance(event, Chunk)])

    assert engine.wait(text(True)) == "<|bos|>" * 3
    assert engine.wait(text(False)) == ""


def test_strict_tools_have_a_grammar_that_vllm_takes(engine: Live) -> None:
    asked = use(ToolChoice.AUTO, tools=(replace(WEATHER, strict=True),))
    plan = engine.engine.plan_tools(asked)
    assert plan.grammar is not None
    (answer,) = engine.draw([engine.chat(OTHERS[0])], sampling(engine, plan), [NOTHING])
    assert answer.finish.reason is FinishReason.STOP
    assert plan.parser().whole(answer.text).content == answer.text


def test_a_schema_that_cannot_be_compiled_is_refused(engine: Live) -> None:
    impossible = Tool("weather", None, {"type": "object", "properties": {"x": {"type": "nonsense"}}})
    plan = engine.engine.plan_tools(use(ToolChoice.NAMED, tools=(impossible,)))
    with pytest.raises(InvalidOptionError):
        engine.draw([engine.chat(OTHERS[0])], sampling(engine, plan))
