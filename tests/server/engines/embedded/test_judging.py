"""The embedded engine judges texts that it does not continue, as it judges prompts that it does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from guards.core.verdict import Verdict
from server.encoding import Encoder
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.errors import PromptTooLongError
from server.engines.events import Event, Finish
from server.engines.request import EngineRequest
from server.generation import Observer
from server.judging import Judge, Judged
from server.policies import default_policy
from tests.served import CONTEXT, forget_prompt, retain_prompt, save_tiny_model
from tests.server.engines.embedded.tiny_engine import Served, guarded, run, watching

TEMPLATE = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}"
"""A chat that ends with what the user says, as a text does."""


def text(prompt: tuple[int, ...]) -> str:
    """A prompt of the tiny model's, but for the token that opens it."""
    return " ".join(f"w{token}" for token in prompt[1:])


def seeing(seen: list[Event]) -> Callable[[EngineRequest], Observer]:
    async def observe(event: Event) -> None:
        seen.append(event)

    return lambda of: observe


@pytest.mark.parametrize("template", [TEMPLATE, ""], ids=["chat", "bare"])
def test_texts_of_the_skill_are_told_from_others(served: Served, tmp_path: Path, template: str) -> None:
    """In a chat, and bare where the model has no chat template. Its weights are those of the fixture's."""
    model = save_tiny_model(tmp_path / "model", template=template or TEMPLATE)
    if not template:
        (model / "chat_template.jinja").unlink()
    seen: list[Event] = []
    spent: list[int] = []

    async def work(engine: EmbeddedEngine) -> list[list[tuple[Judged, ...]]]:
        assert (engine.info.template_sha256 is None) == (not template)
        policies = (default_policy(engine.info.guards), watching(engine))
        return [
            await Judge(engine, Encoder(engine), policy, 4, seeing(seen), spent.append, "").texts(texts)
            for policy in policies
        ]

    texts = [text(of(index)) for index in range(3) for of in (forget_prompt, retain_prompt)]
    enforced, watched = run(guarded((model, *served[1:]), accept_template=True), work)
    assert [each[0].verdict for each in enforced] == [Verdict.ABSTAIN, Verdict.ALLOW] * 3
    assert [each[0].verdict for each in watched] == [Verdict.SHADOW, Verdict.ALLOW] * 3
    finishes = [event for event in seen if isinstance(event, Finish)]
    assert all(finish.verified for finish in finishes)
    assert sorted(spent) == sorted(finish.prompt_tokens for finish in finishes)


def test_a_text_that_does_not_fit_ends_the_judgement_of_the_others(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        policy = default_policy(engine.info.guards)
        judge = Judge(engine, Encoder(engine), policy, 4, seeing([]), lambda tokens: None, "")
        with pytest.raises(PromptTooLongError):
            await judge.texts(["w6", "w7 " * CONTEXT, "w8"])
        assert len(await judge.texts(["w6", "w8"])) == 2

    run(guarded(served), work)
