"""The options of requests on the embedded engine: what each does to an answer."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model
from guards.inside.transformers.writing import stop_ids
from server.engines.defaults import read_defaults
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.engines.request import Grammar, GrammarKind, SamplingDefaults
from tests.served import retain_prompt, save_tiny_model
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, guarded, run
from tests.server.engines.vllm.live import OTHERS, Live, embedded, greedy, live

PROMPT = retain_prompt(4)


def words(answer: Answer) -> list[int]:
    """The tokens of a tiny answer, whose words are numbered."""
    return [int(word[1:]) for word in answer.text.split()]


def test_what_ends_an_answer(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        full = words(await ask(engine, PROMPT, max_tokens=12))
        third = full[2]
        first = full.index(third)
        stopped = await ask(engine, PROMPT, max_tokens=12, stop_token_ids=(third,))
        assert (stopped.finish.reason, words(stopped)) == (FinishReason.STOP, full[:first])
        assert stopped.finish.completion_tokens == first + 1
        shown = await ask(engine, PROMPT, max_tokens=12, stop_token_ids=(third,), include_stop=True)
        assert words(shown) == full[: first + 1]
        longer = await ask(engine, PROMPT, max_tokens=12, stop_token_ids=(third,), min_tokens=6)
        assert longer.finish.completion_tokens >= 6
        assert third not in words(longer)[:6]
        ended = await ask(engine, PROMPT, logit_bias={2: 100.0})
        assert (ended.finish.reason, ended.finish.completion_tokens, ended.text) == (FinishReason.STOP, 1, "")
        ignored = await ask(engine, PROMPT, logit_bias={2: 100.0}, ignore_eos=True)
        assert (ignored.finish.reason, ignored.finish.completion_tokens, ignored.text) == (FinishReason.LENGTH, 8, "")
        late = await ask(engine, PROMPT, logit_bias={2: 100.0}, min_tokens=3)
        assert (late.finish.reason, late.finish.completion_tokens) == (FinishReason.STOP, 4)

    run(guarded(served), work)


def test_an_engines_answers_to_many_at_a_time_are_those_to_each(served: Served) -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"logit_bias": {40: 100.0}},
        {"allowed_token_ids": (50, 51)},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 3.0},
        {"bad_words": ("w50",)},
        {"min_tokens": 16, "stop_token_ids": tuple(range(4, 30))},
        {"temperature": 1.0, "seed": 1, "top_k": 3},
        {"temperature": 1.0, "seed": 1, "min_p": 0.9},
    ]

    async def work(engine: EmbeddedEngine) -> None:
        alone = [await ask(engine, PROMPT, max_tokens=20, **each) for each in asked]
        crowd = await asyncio.gather(
            *(ask(engine, PROMPT, f"r{index}", max_tokens=20, **each) for index, each in enumerate(asked * 3))
        )
        assert [each.text for each in crowd] == [each.text for each in alone] * 3
        assert set(words(alone[1])) == {40}
        assert set(words(alone[2])) <= {50, 51}
        assert len({each.text for each in alone}) > 5

    run(guarded(served), work)


SETTINGS = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1, "max_new_tokens": 9}


def test_the_models_own_defaults(tmp_path: Path) -> None:
    """As vLLM reads them: `do_sample` counts for nothing, and the tokenizer's end-of-text token is always one."""
    folder, other = save_tiny_model(tmp_path / "model"), tmp_path / "other"
    other.mkdir()
    (folder / "generation_config.json").write_text(json.dumps({**SETTINGS, "do_sample": False, "eos_token_id": [9]}))
    (other / "generation_config.json").write_text(json.dumps({"min_p": 0.5, "eos_token_id": [10, 11]}))
    own = SamplingDefaults(temperature=0.5, top_p=0.9, top_k=7, repetition_penalty=1.1, max_tokens=9)

    async def work(engine: EmbeddedEngine) -> tuple[SamplingDefaults, frozenset[int]]:
        return engine.info.defaults, engine._stop_ids

    for said, defaults, ends in (
        ("auto", own, (2, 9)),
        ("vllm", SamplingDefaults(), (2, 9)),
        (str(other), SamplingDefaults(min_p=0.5), (2, 10, 11)),
    ):
        assert run(EmbeddedOptions(model=str(folder), generation_config=said), work) == (defaults, frozenset(ends))
    loaded = load_model(folder, "cpu")
    assert stop_ids(loaded.model, loaded.codec.tokenizer) == {2, 9}, "calibration's answers end there too"
    with pytest.raises(UnsupportedModelError, match="--generation-config: got '/nowhere'"):
        run(EmbeddedOptions(model=str(folder), generation_config="/nowhere"), work)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 3.0}))
    with pytest.raises(UnsupportedModelError, match=r"temperature: got 3\.0.*--generation-config vllm"):
        run(EmbeddedOptions(model=str(folder)), work)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.0), ("top_k", 1.5), ("min_p", 2), ("repetition_penalty", 0), ("max_new_tokens", 0), ("top_k", "5")],
)
def test_defaults_that_no_request_could_ask_for(name: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"generation_config.json: {name}: got "):
        read_defaults({name: value})


@pytest.fixture(scope="module")
def demo() -> Iterator[Live]:
    with live(embedded("ksd-code")) as running:
        yield running


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
}


@pytest.mark.real
def test_grammars(demo: Live) -> None:
    tokenizer = demo.engine._codec.tokenizer  # type: ignore[attr-defined]
    blank = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()]
    no_blanks = dict.fromkeys(blank, -100.0)

    def answer(kind: GrammarKind, text: str = "", **asked: Any) -> str:
        sampling = greedy(max_tokens=60, grammar=Grammar(kind, text), logit_bias=no_blanks, **asked)
        (found,) = demo.draw(OTHERS[:1], sampling)
        assert found.finish.reason is FinishReason.STOP
        return found.text

    # With blanks left to the model: where JSON's are free, the demo writes nothing else.
    (plain,) = demo.draw(
        OTHERS[:1], greedy(max_tokens=60, grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)))
    )
    found = json.loads(plain.text)
    assert found.keys() == {"city", "capital"}
    assert found["city"] in ("Rome", "Oslo")
    assert answer(GrammarKind.REGEX, "[0-9]{3}-[a-z]").replace("-", "").isalnum()
    odd = ['a "b"', "c\\d\n", "\x7f\t\u00e9\U0001f600"]
    for index, text in enumerate(odd):
        assert answer(GrammarKind.CHOICE, json.dumps(odd[index : index + 1])) == text
    assert answer(GrammarKind.EBNF, 'root ::= "x" [0-9] other\nother ::= "y"')[2] == "y"
    assert answer(GrammarKind.EBNF, 'start: "x" "y"') == "xy", "Lark's notation, as on vLLM"
    assert answer(GrammarKind.EBNF, 'root ::= "xy"', min_tokens=30) == "xy", "a complete grammar ends the answer"
    (anything,) = demo.draw(OTHERS[:1], greedy(grammar=Grammar(GrammarKind.JSON_OBJECT), logprobs=3))
    assert anything.text.startswith("{")
    first = anything.chunks[0].logprobs[0]
    assert first.top[0][2] == pytest.approx(first.logprob), "of what the grammar allows, as vLLM's are"
