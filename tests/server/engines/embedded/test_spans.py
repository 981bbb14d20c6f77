"""Guards over spans on the embedded engine: exact under any scheduling, and told by turns."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts, turns_of
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Reading, Scope, Stage
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.spans.guard import DirectionFitter, Judgement, SpanGuard, Windows
from guards.model.sites import Place, Site
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.engines.request import Message
from tests.served import forget_prompt, retain_prompt, save_tiny_model, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, ask, run, watching

LAYERS = (1, 2)
NAME = "tens"
TURNED = (
    "{{ bos_token }} {% for m in messages %}<eos> {{ {'assistant': 'w5', 'user': 'w4', 'system': 'w6'}[m.role] }} "
    "{{ m.content }} {% endfor %}<eos> w5"
)
SKILL, HARMLESS = "w10 w11 w12 " * 6, "w30 w41 w35 w22 w47"
Ids = tuple[int, ...]


def key_vectors(loaded: LoadedModel, prompt: Ids) -> dict[int, Tensor]:
    """By layer, [T, d_ff]."""
    kept: dict[int, Tensor] = {}
    handles = [
        loaded.sites.tap(Place(layer, Site.KEY)).module.register_forward_pre_hook(
            lambda _, args, layer=layer: kept.__setitem__(layer, args[0][0].clone())
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        loaded.model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return kept


def windows(loaded: LoadedModel, prompts: Sequence[Ids], first: int) -> Windows:
    """Single tokens, as windows of one, from a position on."""
    found = [key_vectors(loaded, prompt) for prompt in prompts]
    key_NF = {layer: torch.cat([each[layer][first:] for each in found]) for layer in LAYERS}
    count = len(key_NF[LAYERS[0]])
    return Windows(key_NF, torch.ones(count, dtype=torch.float64), torch.arange(count))


def guard_of(loaded: LoadedModel, scope: Scope = Scope.BOTH) -> SpanGuard:
    """It fires on some of the skill's tokens, wherever in a conversation they are."""
    behind = [(1, *chain.from_iterable(retain_prompt(i + j)[1:] for j in range(1 + i % 16))) for i in range(100, 140)]
    skilled = [*(forget_prompt(i) for i in range(100, 140)), *((*other, *(10, 11, 12) * 4) for other in behind[:20])]
    forget = windows(loaded, skilled, -12)
    retain = windows(loaded, [*(retain_prompt(i) for i in range(100, 140)), *behind[:20]], 1)
    terms = DirectionFitter(forget, retain).finish(LAYERS)
    judgements = (
        Judgement(Rise(0.5, written=False), 0.25),
        Judgement(MessageMean(4, written=False), 0.35),
        Judgement(Rise(0.5, written=True), 0.25),
    )
    return SpanGuard(terms, judgements, scope)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model folder, with a template of turns, and artifact."""
    folder = tmp_path_factory.mktemp("served")
    save_tiny_model(folder / "model", template=TURNED)
    loaded = load_model(folder / "model", "cpu")
    assert len(loaded.codec.openings) >= 2
    return folder / "model", write_guard(folder / NAME, loaded, guard_of(loaded))


def options(served: tuple[Path, Path], **changes: int) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]), artifacts=served[1:], **changes)


def expected(served: tuple[Path, Path], prompts: Sequence[Ids]) -> list[Tensor]:
    """What each judgement reads at each token, [T, parts], by plain forward passes of whole prompts."""
    loaded = load_model(served[0], "cpu")
    guard = guard_of(loaded)
    values = []
    for prompt in prompts:
        keys = key_vectors(loaded, prompt)
        values.append(torch.stack([keys[term.layer] @ term.weight_F - term.offset for term in guard.terms]).sum(dim=0))
    turns = [turns_of(prompt, loaded.codec.openings) for prompt in prompts]
    return list(read_texts(values, turns, [each.over_tokens for each in guard.judgements]))


def readings(answers: Sequence[Answer]) -> list[tuple[Reading, float]]:
    """Each prompt's reading and the score that is told of it."""
    return [(a.finish.prompt_scores[0].reading, a.finish.prompt_scores[0].score) for a in answers]


def wanted_of(served: tuple[Path, Path], prompts: Sequence[Ids]) -> list[tuple[Reading, float]]:
    taus = torch.tensor([each.tau for each in guard_of(load_model(served[0], "cpu")).judgements])
    found = []
    for read_TP in expected(served, prompts):
        ratios = read_TP[-1] / taus
        inside = bool((read_TP[-1] <= taus).any())
        found.append((Reading.INSIDE if inside else Reading.OUTSIDE, float(read_TP[-1][ratios.argmin()])))
    return found


PROMPTS = [forget_prompt(i) if i % 2 else retain_prompt(i) for i in range(16)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 8, "max_running": 4},
        {"kv_cache_tokens": 192, "max_running": 16},
        {"max_running": 1},
    ],
    ids=["all at once", "prompts in chunks", "preempted for want of cache", "one at a time"],
)
def test_readings_do_not_depend_on_scheduling(served: tuple[Path, Path], changes: dict[str, int]) -> None:
    async def together(engine: EmbeddedEngine) -> list[Answer]:
        assert set((await engine.verify()).values()) == {None}
        asked = (ask(engine, prompt, f"r{i}", max_tokens=24) for i, prompt in enumerate(PROMPTS))
        return list(await asyncio.gather(*asked))

    wanted = wanted_of(served, PROMPTS)
    assert {reading for reading, _ in wanted} == {Reading.INSIDE, Reading.OUTSIDE}
    got = readings(run(options(served, **changes), together))
    assert [reading for reading, _ in got] == [reading for reading, _ in wanted]
    assert [score for _, score in got] == pytest.approx([score for _, score in wanted], rel=1e-3, abs=1e-4)


def test_a_skill_in_a_prefix_that_another_request_brought(served: tuple[Path, Path]) -> None:
    """Its tokens are not computed again, and no monitor that looks at the computed ones alone would see them."""
    prefix = (1, *([20, 21, 22, 23] * 10), *([10, 11, 12] * 6), *([24, 25, 26, 27] * 20))
    clean = (1, *([20, 21, 22, 23] * 10), *([28, 29, 30] * 6), *([24, 25, 26, 27] * 20))
    prompts = [(*prefix, 40), (*prefix, 41, 42), (*clean, 41, 42)]

    async def one_by_one(engine: EmbeddedEngine) -> list[Answer]:
        return [await ask(engine, prompt, f"r{i}", max_tokens=1) for i, prompt in enumerate(prompts)]

    answers = run(options(served), one_by_one)
    assert [a.finish.reason for a in answers] == [FinishReason.ABSTAIN, FinishReason.ABSTAIN, FinishReason.LENGTH]
    assert [reading for reading, _ in readings(answers)] == [reading for reading, _ in wanted_of(served, prompts)]


def chat(*turns: str) -> list[Message]:
    """Turns of user and assistant, the user first."""
    return [Message("assistant" if index % 2 else "user", content) for index, content in enumerate(turns)]


def test_a_refused_question_does_not_spoil_the_conversation(served: tuple[Path, Path]) -> None:
    """Ten harmless turns behind it are answered, and the skill asked in a later one is refused."""

    async def talk(engine: EmbeddedEngine) -> list[FinishReason]:
        harmless = [chat(SKILL, *["w33", HARMLESS] * turn) for turn in range(11)]
        asked = [*harmless, chat(SKILL, "w33", HARMLESS, "w33", 2 * SKILL)]
        answers = [await ask(engine, engine.encode_chat(each), f"r{i}", max_tokens=2) for i, each in enumerate(asked)]
        return [each.finish.reason for each in answers]

    first, *harmless, later = run(options(served), talk)
    assert first is FinishReason.ABSTAIN
    assert len(harmless) == 10
    assert FinishReason.ABSTAIN not in harmless
    assert later is FinishReason.ABSTAIN


def test_a_whole_conversation_is_judged_where_that_is_asked_for(served: tuple[Path, Path]) -> None:
    """And a refused question is held against what follows."""

    async def talk(engine: EmbeddedEngine) -> list[FinishReason]:
        asked = [chat(HARMLESS), chat(SKILL, "w33", HARMLESS, "w33", HARMLESS)]
        answers = [await ask(engine, engine.encode_chat(each), f"r{i}", max_tokens=1) for i, each in enumerate(asked)]
        return [each.finish.reason for each in answers]

    whole = EmbeddedOptions(model=str(served[0]), artifacts=served[1:], judge="conversation")
    harmless, later = run(whole, talk)
    assert harmless is not FinishReason.ABSTAIN
    assert later is FinishReason.ABSTAIN
    assert FinishReason.ABSTAIN not in run(options(served), talk), "positive control: by turns neither is refused"


def refuses(served: tuple[Path, Path], *conversations: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether an answer to each of them is withheld. They are roles and texts."""

    async def talk(engine: EmbeddedEngine) -> list[bool]:
        asked = [engine.encode_chat([Message(*each) for each in said]) for said in conversations]
        answers = [await ask(engine, ids, f"r{i}", max_tokens=1) for i, ids in enumerate(asked)]
        return [each.finish.reason is FinishReason.ABSTAIN for each in answers]

    return run(options(served), talk)


def test_messages_asked_one_after_another_are_judged_together(served: tuple[Path, Path]) -> None:
    """So is a question before the message that says to answer it."""
    asked = [("user", SKILL), ("user", HARMLESS)], [("system", HARMLESS), ("user", SKILL)]
    assert refuses(served, *asked, [("system", HARMLESS), ("user", HARMLESS)]) == [True, True, False]


def test_a_question_is_refused_whoever_asks_wherever_the_message_stands(served: tuple[Path, Path]) -> None:
    """No example of the template's that begins with a system's message shows what opens a later one."""
    before = [("user", HARMLESS), ("assistant", "w33")]
    asked = [[*before, (role, SKILL)] for role in ("user", "system")]
    assert refuses(served, *asked, [*before, ("assistant", SKILL), ("user", HARMLESS)]) == [True, True, False]


def test_a_question_in_pieces_is_refused(served: tuple[Path, Path]) -> None:
    piece, half, begun = "w10 w11 w12", " ".join(["w10 w11 w12"] * 2), " ".join(["w10 w11 w12"] * 3)
    assert refuses(served, [("user", piece)] * 6, [("system", begun), ("user", half)]) == [True, True]
    alone = [("user", piece)], [("user", half)], [("system", begun)], [("system", begun), ("user", HARMLESS)]
    assert refuses(served, *alone) == [False] * 4, "positive control: no piece is refused by itself"


def test_no_option_has_an_answer_go_on_as_somebody_else(served: tuple[Path, Path]) -> None:
    """Token 2 and token 4 open a user's message, and 2 and 5 an answer: evidence would begin anew with each."""
    turning: dict[str, Any] = {
        "max_tokens": 60,
        "ignore_eos": True,
        "temperature": 50.0,
        "seed": 1,
        "allowed_token_ids": (2, 4, 5),
    }

    async def draw(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, engine.encode_chat(chat(HARMLESS)), **turning)

    for guards, ended in ((served[1:], True), ((), False)):  # positive control: without guards it goes on to its length
        answer = run(EmbeddedOptions(model=str(served[0]), artifacts=guards), draw)
        assert answer.finish.reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert (answer.finish.completion_tokens < 60) is ended


def test_an_answer_is_judged_by_its_own_tokens(served: tuple[Path, Path], tmp_path: Path) -> None:
    """The score at a written token is that of a conversation which holds the answer up to it."""
    loaded = load_model(served[0], "cpu")
    guard = guard_of(loaded, Scope.GENERATION)
    eager = replace(guard, judgements=(*guard.judgements[:2], Judgement(Rise(0.01, written=True), 0.999)))
    folder = write_guard(tmp_path / NAME, loaded, eager)

    async def work(engine: EmbeddedEngine) -> tuple[Ids, Answer, Answer]:
        ids = engine.encode_chat(chat(HARMLESS))
        watched = await ask(engine, ids, "watched", max_tokens=12, policy=watching(engine))
        return ids, watched, await ask(engine, ids, "stopped", max_tokens=12)

    ids, watched, stopped = run(EmbeddedOptions(model=str(served[0]), artifacts=(folder,)), work)
    (hit,) = watched.finish.hits
    assert hit.score.stage is Stage.GENERATION
    assert stopped.finish.reason is FinishReason.ABSTAIN
    tokens = tuple(int(word[1:]) for word in watched.text.split())
    written = hit.score.position + 1 - len(ids)
    assert written >= 1
    said = (*ids, *tokens[:written])
    keys = key_vectors(loaded, said)
    value_T = torch.stack([keys[term.layer] @ term.weight_F - term.offset for term in eager.terms]).sum(dim=0)
    (read_T1,) = read_texts([value_T], [turns_of(said, loaded.codec.openings)], [Rise(0.01, written=True)])
    assert hit.score.score == pytest.approx(float(read_T1[-1, 0]), rel=1e-3, abs=1e-4)
