"""Long conversations through other people's clients: refused turns in between are shown once and taken back."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from guards.core.verdict import Stage
from server.engines.request import Message
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server import talkers
from tests.server.harness import listening

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
TURNS = [("hi", "cook", "sing", "later")[index % 4] for index in range(20)]
STREAMS = ("openai_stream", "openai_chunks", "responses_stream", "langchain_stream", "litellm_stream")
LOSES_REFUSALS = ("langchain_stream", "litellm_stream")
"""Clients that do not put a refusal together from its pieces."""
KEEPS_REFUSALS_TO_ITSELF = ("langchain",)
"""Clients that show a refusal and send back an empty answer."""


def engine() -> ScriptedEngine:
    """Abstains on "cook" at the prompt and on "later" after a token."""

    def asks(word: str) -> Callable[[str], bool]:
        return lambda prompt: word in prompt.rpartition("user: ")[2]

    return ScriptedEngine(
        [
            Script(abstention(hit(guard())), when=asks("cook")),
            Script(abstention(hit(guard(), Stage.GENERATION), "Take"), when=asks("later")),
            Script(answer("La", " la."), when=asks("sing")),
            Script(answer("Hello", " there", ".")),
        ]
    )


async def talk(
    name: str, questions: list[str], made: Callable[[], ScriptedEngine], styles: Sequence[str]
) -> list[tuple[str, list[str], ScriptedEngine]]:
    """Each style with what a client showed under it, and what answered. One process, since SDKs are slow to import."""
    engines = [made() for _ in styles]
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(listening(each, abstain_style=style, abstain_text=TEXT))
            for each, style in zip(engines, styles, strict=True)
        ]
        shown = await _talk(name, urls, questions)
    return list(zip(styles, shown, engines, strict=True))


async def _talk(name: str, urls: list[str], questions: list[str]) -> list[list[str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.talkers", name, *urls),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    shown, trouble = await process.communicate(json.dumps(questions).encode())
    assert process.returncode == 0, trouble.decode()[-2000:]
    lines: list[list[str]] = json.loads(shown.splitlines()[-1])
    return lines


@pytest.mark.parametrize("name", talkers.TURNS)
async def test_twenty_turns(name: str) -> None:
    # parse() raises on the other style's finish reason, and has no message to append
    styles = ["refusal"] if name == "openai_parse" else ["refusal", "content_filter"]
    for style, shown, scripted in await talk(name, TURNS, engine, styles):
        check_twenty_turns(name, style, shown, scripted)


def check_twenty_turns(name: str, style: str, shown: list[str], scripted: ScriptedEngine) -> None:
    """Each turn as it should be shown, and taken back."""
    refusal = "" if name in LOSES_REFUSALS and style == "refusal" else TEXT
    begun = "Take" if name in STREAMS else ""
    separated = f"{begun}\n\n{refusal}" if begun and refusal else begun + refusal
    if name == "responses_stream" and style == "refusal":  # two parts of one message
        separated = f"{begun}\n{refusal}"
    answers = {"hi": "Hello there.", "cook": refusal, "sing": "La la.", "later": separated}
    as_shown = {**answers, "later": begun + refusal if style == "refusal" else separated}
    assert shown == [as_shown[question] for question in TURNS]
    if name in KEEPS_REFUSALS_TO_ITSELF and style == "refusal":
        answers |= {"cook": "", "later": ""}
    history = [
        message
        for question in TURNS
        for message in (Message("user", question), Message("assistant", answers[question]))
    ]
    assert len(scripted.submitted) == len(TURNS)
    assert scripted.submitted[-1].prompt_token_ids == scripted.encode_chat(history[:-1])


@pytest.mark.parametrize("name", talkers.AGENTS)
async def test_calls_of_an_agent(name: str) -> None:
    """Its calls and their results, and refused runs in between: a `refusal` is an error to it, not history."""
    call = '[[clock|{"city": "Rome"}]]'

    def clock() -> ScriptedEngine:
        return ScriptedEngine(
            [
                Script(answer("Noon."), when=lambda prompt: prompt.rpartition("tool ")[2].count("user: ") == 0),
                Script(abstention(hit(guard())), when=lambda prompt: "cook" in prompt.rpartition("user: ")[2]),
                Script(answer(call)),
            ]
        )

    for style, shown, scripted in await talk(
        name, ["hi", "cook", "when?", "cook", "when?"], clock, ["content_filter", "refusal"]
    ):
        assert [shown[index] for index in (0, 2, 4)] == ["Noon."] * 3
        assert [TEXT in shown[index] for index in (1, 3)] == [True, True]
        prompt = bytes(scripted.submitted[-1].prompt_token_ids).decode()
        kept = 2 if style == "content_filter" else 0
        assert (prompt.count("[[clock|"), prompt.count("noon in Rome"), prompt.count(TEXT)) == (3, 3, kept)
