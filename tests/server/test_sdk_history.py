"""Long conversations through other people's clients: refused turns in between are shown once and taken back."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guards.core.verdict import Stage
from server.engines.base import Message
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


async def talk(name: str, url: str, questions: list[str]) -> list[str]:
    """What a client showed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.talkers", name, url),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    shown, trouble = await process.communicate(json.dumps(questions).encode())
    assert process.returncode == 0, trouble.decode()[-2000:]
    lines: list[str] = json.loads(shown.splitlines()[-1])
    return lines


@pytest.mark.parametrize(
    ("name", "style"),
    [
        *((name, "refusal") for name in talkers.TURNS),
        # parse() raises on the other style's finish reason, and has no message to append
        *((name, "content_filter") for name in talkers.TURNS if name != "openai_parse"),
    ],
)
async def test_twenty_turns(name: str, style: str) -> None:
    scripted = engine()
    async with listening(scripted, abstain_style=style, abstain_text=TEXT) as url:
        shown = await talk(name, url, TURNS)
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


@pytest.mark.parametrize(("style", "kept"), [("content_filter", 2), ("refusal", 0)])
@pytest.mark.parametrize("name", talkers.AGENTS)
async def test_calls_of_an_agent(name: str, style: str, kept: int) -> None:
    """Its calls and their results, and refused runs in between: a `refusal` is an error to it, not history."""
    call = '[[clock|{"city": "Rome"}]]'
    scripted = ScriptedEngine(
        [
            Script(answer("Noon."), when=lambda prompt: prompt.rpartition("tool ")[2].count("user: ") == 0),
            Script(abstention(hit(guard())), when=lambda prompt: "cook" in prompt.rpartition("user: ")[2]),
            Script(answer(call)),
        ]
    )
    async with listening(scripted, abstain_style=style, abstain_text=TEXT) as url:
        shown = await talk(name, url, ["hi", "cook", "when?", "cook", "when?"])
    assert [shown[index] for index in (0, 2, 4)] == ["Noon."] * 3
    assert [TEXT in shown[index] for index in (1, 3)] == [True, True]
    prompt = bytes(scripted.submitted[-1].prompt_token_ids).decode()
    assert (prompt.count("[[clock|"), prompt.count("noon in Rome"), prompt.count(TEXT)) == (3, 3, kept)
