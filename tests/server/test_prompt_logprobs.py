"""What callers are told of their own prompts: `echo`, and log-probabilities in OpenAI's and in vLLM's form."""

import re
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from guards.core.verdict import GuardMode, Stage
from server.engines.events import Chunk, Finish, FinishReason, PromptHits, PromptToken, RankedToken, TokenLogprob
from server.engines.request import COMMON_OPTIONS
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.harness import CHAT, COMPLETIONS, chat, completion, serving

pytestmark = pytest.mark.anyio

LEAST = -9999.0
SORRY = "No."
CHEF = guard()


def token(text: str, logprob: float, best: str = "?", best_logprob: float = -0.25) -> PromptToken:
    itself, top = (
        RankedToken(ord(each), each, each.encode(), value, rank)
        for each, value, rank in ((text, logprob, 2), (best, best_logprob, 1))
    )
    return PromptToken(itself, (top, itself))


PROMPT = (PromptToken(), token("b", -1.5), token("c", -2.0))
FIRST = Chunk("d", 1, (TokenLogprob("d", b"d", -0.5, (("e", b"e", -0.4),)),), prompt=PROMPT)
FINISH = Finish(FinishReason.LENGTH, 0, 1, verified=True)


def played(*chunks: Chunk, finish: Finish = FINISH) -> ScriptedEngine:
    return ScriptedEngine([Script((*chunks, finish))])


def withholding(mode: GuardMode = GuardMode.ENFORCE) -> ScriptedEngine:
    """At the second of three tokens."""
    prompt = (PROMPT[0], PromptToken() if mode is GuardMode.ENFORCE else PROMPT[1], PROMPT[2])
    hits = (PromptHits(hit(CHEF, mode=mode), 1),)
    finish = Finish(FinishReason.LENGTH, 0, 1, verified=True, prompt_hits=hits)
    return played(Chunk("d", 1, FIRST.logprobs, prompt=prompt), finish=finish)


def loglikelihood(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """As lm_eval adds it up (its `parse_logprobs`): of the tokens behind the context but the drawn one."""
    told = choice["logprobs"]
    values, tops = told["token_logprobs"][context:-1], told["top_logprobs"][context:-1]
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))


async def choice_of(engine: ScriptedEngine, body: dict[str, object], **settings: Any) -> dict[str, Any]:
    async with serving(engine, abstain_text=SORRY, **settings) as served:
        response = await served.post(COMPLETIONS, body)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        found: dict[str, Any] = choice
        return found


async def test_a_text_comes_back_as_it_was_sent() -> None:
    class Opening(ScriptedEngine):
        """Opens every text, as most tokenizers do."""

        def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
            return (*b"<s>", *super().encode_text(text, opened=opened))

    choice = await choice_of(Opening([Script(answer("!"))]), completion("abc", echo=True, logprobs=0))
    assert choice["text"] == "abc!"
    assert "".join(choice["logprobs"]["tokens"]) == "<s>abc", "the tokens are the model's"


async def test_a_request_may_name_no_model_and_ask_for_no_prompt() -> None:
    for named in {}, {"model": ""}, {"model": None}:
        choice = await choice_of(ScriptedEngine([Script(answer("!"))]), {"prompt": "abc", **named})
        assert (choice["text"], choice["prompt_logprobs"]) == ("!", None)


async def test_echo_with_logprobs_is_what_lm_eval_reads() -> None:
    engine = played(FIRST)
    choice = await choice_of(engine, completion("abc", echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234))
    assert choice["text"] == "abcd"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "d"],
        "token_logprobs": [None, -1.5, -2.0, -0.5],
        "top_logprobs": [None, {"?": -0.25, "b": -1.5}, {"?": -0.25, "c": -2.0}, {"e": -0.4, "d": -0.5}],
        "text_offset": [0, 1, 2, 3],
    }
    assert "guard" not in choice
    assert loglikelihood(choice, 1) == (-3.5, False)
    assert (engine.submitted[0].sampling.prompt_logprobs, engine.submitted[0].sampling.max_tokens) == (1, 1)


async def test_nothing_but_the_prompt() -> None:
    engine = played(FIRST)
    choice = await choice_of(engine, completion("abc", echo=True, logprobs=0, max_tokens=0))
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": -1.5}, {"c": -2.0}]
    assert engine.submitted[0].sampling.max_tokens == 1, "guards judge where a token is drawn"


async def test_a_prompt_of_token_ids_and_none_of_its_logprobs() -> None:
    engine = played(Chunk("d", 1))
    choice = await choice_of(engine, completion([97, 98], echo=True))
    assert (choice["text"], choice["logprobs"]) == ("abd", None)
    assert engine.submitted[0].sampling.prompt_logprobs is None


async def test_several_prompts_each_with_its_own() -> None:
    engine = ScriptedEngine(
        [
            Script((FIRST, FINISH), lambda text: text == "abc"),
            Script((Chunk("z", 1, prompt=(PromptToken(), token("y", -7.0))), FINISH)),
        ]
    )
    async with serving(engine) as served:
        body = completion(["abc", [120, 121]], echo=True, logprobs=1, max_tokens=1, n=2)
        choices = (await served.post(COMPLETIONS, body)).json()["choices"]
        assert [choice["text"] for choice in choices] == ["abcd", "abcd", "xyz", "xyz"]
        assert [choice["logprobs"]["token_logprobs"][1] for choice in choices] == [-1.5, -1.5, -7.0, -7.0]


@pytest.mark.parametrize("style", ["content_filter", "refusal"])
async def test_an_abstained_request_counts_as_what_the_model_would_not_say(style: str) -> None:
    engine = ScriptedEngine([Script(abstention(hit(CHEF)))])
    body = completion("abc", echo=True, logprobs=1, max_tokens=1)
    choice = await choice_of(engine, body, abstain_style=style)
    assert (choice["text"], choice["guard"]["action"]) == (f"abc{SORRY}", "abstain")
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", SORRY],
        "token_logprobs": [None, LEAST, LEAST, 0.0],
        "top_logprobs": [None, {SORRY: 0.0, "b": LEAST}, {SORRY: 0.0, "c": LEAST}, {SORRY: 0.0}],
        "text_offset": [0, 1, 2, 3],
    }
    assert loglikelihood(choice, 1) == (2 * LEAST, False)
    alone = await choice_of(ScriptedEngine([Script(abstention(hit(CHEF)))]), {**body, "max_tokens": 0})
    assert alone["logprobs"]["tokens"] == ["a", "b", "c"]


async def test_what_the_model_wrote_before_it_abstained_is_not_told() -> None:
    engine = ScriptedEngine([Script((FIRST, *abstention(hit(CHEF, Stage.GENERATION))))])
    choice = await choice_of(engine, completion("abc", echo=True, logprobs=1, prompt_logprobs=1))
    assert choice["logprobs"]["token_logprobs"] == [None, LEAST, LEAST, 0.0]
    assert choice["prompt_logprobs"] is None


async def test_abstention_as_an_error() -> None:
    engine = ScriptedEngine([Script(abstention(hit(CHEF)))])
    async with serving(engine, abstain_style="error") as served:
        error = await served.error(COMPLETIONS, completion("abc", echo=True, logprobs=1, max_tokens=1))
        assert (error["status"], error["code"]) == (400, "skill_abstained")


async def test_a_place_that_is_withheld_inside_the_prompt() -> None:
    body = completion("abc", echo=True, logprobs=1, prompt_logprobs=0, max_tokens=1)
    async with serving(withholding(), abstain_text=SORRY) as served:
        (choice,) = (await served.post(COMPLETIONS, body)).json()["choices"]
        assert choice["logprobs"]["token_logprobs"] == [None, LEAST, -2.0, -0.5]
        assert choice["logprobs"]["top_logprobs"][1] == {SORRY: 0.0, "b": LEAST}
        assert choice["prompt_logprobs"] == [None, None, {"99": {"logprob": -2.0, "rank": 2, "decoded_token": "c"}}]
        assert choice["finish_reason"] == "length"
        assert (choice["guard"]["action"], choice["guard"]["positions"]) == ("withhold_logprobs", 1)
        labels = 'skillguard_prompt_logprob_hits_total{method="ksd",mode="enforce",skill="cooking"}'
        assert await served.metric(labels) == 1
        metrics = (await served.client.get("/metrics")).text
        abstained = re.findall(r"^skillguard_abstentions_total{.*} (.*)$", metrics, re.M)
        assert abstained == ["0.0"] * 2, "at either stage"
    async with serving(withholding()) as served:
        (choice,) = (await served.post(COMPLETIONS, body)).json()["choices"]
        assert choice["guard"].keys() == {"action", "skill", "method", "stage", "positions"}, "no scores for users"


async def test_shadow_only_counts() -> None:
    async with serving(withholding(GuardMode.SHADOW)) as served:
        body = completion("abc", echo=True, logprobs=1, max_tokens=1)
        (choice,) = (await served.post(COMPLETIONS, body)).json()["choices"]
        assert choice["logprobs"]["token_logprobs"] == [None, -1.5, -2.0, -0.5]
        assert "guard" not in choice
        labels = 'skillguard_prompt_logprob_hits_total{method="ksd",mode="shadow",skill="cooking"}'
        assert await served.metric(labels) == 1


async def test_vllms_form_of_a_conversation() -> None:
    engine = played(FIRST)
    async with serving(engine) as served:
        answer = (await served.post(CHAT, chat("x", prompt_logprobs=1, max_tokens=1))).json()
        ChatCompletion.model_validate(answer)
        best = {"logprob": -0.25, "rank": 1, "decoded_token": "?"}
        assert answer["prompt_logprobs"] == [
            None,
            {"98": {"logprob": -1.5, "rank": 2, "decoded_token": "b"}, "63": best},
            {"99": {"logprob": -2.0, "rank": 2, "decoded_token": "c"}, "63": best},
        ]
        assert "prompt_logprobs" not in answer["choices"][0]
        engine.scripts = [Script(abstention(hit(CHEF)))]
        assert (await served.post(CHAT, chat("x", prompt_logprobs=1))).json()["prompt_logprobs"] is None
        assert (await served.post(CHAT, chat("x"))).json()["prompt_logprobs"] is None


async def test_a_stream_begins_with_the_prompt() -> None:
    more = Chunk("f", 1, (TokenLogprob("f", b"f", -0.1),))
    async with serving(played(FIRST, more), hold_back_tokens=1) as served:
        events = await served.stream(COMPLETIONS, completion("abc", echo=True, logprobs=1))
        choices = [event["choices"][0] for event in events[:-1]]
        assert [choice["text"] for choice in choices] == ["abc", "d", "f", ""]
        assert choices[0]["logprobs"]["token_logprobs"] == [None, -1.5, -2.0]
        assert [choice["logprobs"]["text_offset"] for choice in choices[1:3]] == [[3], [4]]


async def test_a_stream_that_abstains_tells_nothing_of_the_models() -> None:
    """What is held back takes the prompt's log-probabilities with it."""
    engine = ScriptedEngine([Script((FIRST, *abstention(hit(CHEF, Stage.GENERATION))))])
    async with serving(engine, hold_back_tokens=3, abstain_text=SORRY) as served:
        events = await served.stream(COMPLETIONS, completion("abc", echo=True, logprobs=1))
        choices = [event["choices"][0] for event in events[:-1]]
        assert [choice["text"] for choice in choices] == ["abc", SORRY, ""]
        assert choices[0]["logprobs"]["token_logprobs"] == [None, LEAST, LEAST]


async def test_a_stream_of_nothing_but_the_prompt() -> None:
    async with serving(played(FIRST)) as served:
        events = await served.stream(COMPLETIONS, completion("abc", echo=True, max_tokens=0))
        assert [event["choices"][0]["text"] for event in events[:-1]] == ["abc", ""]


async def test_an_engine_that_tells_nothing_of_prompts() -> None:
    async with serving(ScriptedEngine(options=COMMON_OPTIONS)) as served:
        for fields in {"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}:
            error = await served.error(COMPLETIONS, completion("abc", **fields))
            assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(fields)))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, completion("abc", max_tokens=0), "max_tokens"),
        (COMPLETIONS, completion("abc", logprobs=21), "logprobs"),
        (COMPLETIONS, completion("abc", prompt_logprobs=-1), "prompt_logprobs"),
        (COMPLETIONS, completion("abc", prompt_logprobs=1, stream=True), "prompt_logprobs"),
        (CHAT, chat("x", max_tokens=0), "max_tokens"),
        (CHAT, chat("x", echo=True), "echo"),
    ],
)
async def test_what_is_refused(path: str, body: dict[str, object], param: str) -> None:
    async with serving(played(FIRST)) as served:
        assert (await served.error(path, body))["param"] == param
