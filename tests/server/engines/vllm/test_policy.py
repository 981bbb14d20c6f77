"""Which guards are enforced may differ between the requests of one batch."""

from guards.core.verdict import GuardMode
from server.engines.events import FinishReason
from tests.server.engines.vllm.live import SUMS, Live, greedy

SHADOW, ENFORCE = GuardMode.SHADOW, GuardMode.ENFORCE
CODE = "Write a Python function that adds two numbers."


def modes(**enforced: bool) -> dict[str, GuardMode]:
    return {f"ksd-{skill}": ENFORCE if enforced.get(skill) else SHADOW for skill in ("mathematics", "code", "en")}


def test_each_request_of_a_batch_has_its_own_policy(engine: Live) -> None:
    policies = [modes(mathematics=True), modes(code=True), modes(mathematics=True, code=True), modes()]
    prompts = [prompt for prompt in (SUMS[0], CODE) for _ in policies]
    answers = engine.draw(prompts, greedy(), policies * 2)
    reasons = [answer.finish.reason is FinishReason.ABSTAIN for answer in answers]
    assert reasons == [True, False, True, False, False, True, True, False]
    for answer, prompt in zip(answers, prompts, strict=True):
        hit = next(hit for hit in answer.finish.hits if hit.score.guard != "ksd-en")
        assert hit.score.guard == ("ksd-mathematics" if prompt == SUMS[0] else "ksd-code")
        assert answer.finish.verified


def test_a_guard_that_a_request_does_not_name_is_enforced(engine: Live) -> None:
    answer = engine.draw([SUMS[0]], greedy(), [{}])[0]
    assert answer.finish.reason is FinishReason.ABSTAIN
    assert all(hit.mode is ENFORCE for hit in answer.finish.hits)


def test_shadowed_answers_are_those_of_an_unguarded_model(engine: Live, reference: Live) -> None:
    prompts = [*SUMS, CODE]
    for live in (engine, reference):
        for answer in live.draw(prompts, greedy(max_tokens=60), [modes()] * len(prompts)):
            assert answer.finish.reason is FinishReason.STOP
            assert answer.finish.hits
    texts = [
        [answer.text for answer in live.draw(prompts, greedy(max_tokens=60), [modes()] * 4)]
        for live in (engine, reference)
    ]
    assert texts[0] == texts[1]


def test_cancelling_one_answer_leaves_the_others(engine: Live) -> None:
    async def first_event_then_leave() -> None:
        from server.engines.request import EngineRequest

        stream = engine.engine.submit(
            EngineRequest("leaves", engine.chat(CODE), greedy(ignore_eos=True, max_tokens=400), engine.policy(modes()))
        )
        await anext(stream)
        await stream.aclose()

    engine.wait(first_event_then_leave())
    assert engine.draw([CODE], greedy(), [modes()])[0].finish.reason is FinishReason.STOP
    assert engine.engine.load().running == 0
