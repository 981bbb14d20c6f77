"""Clients are driven, judged, kept and shown: the pieces, without a client from the package index."""

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from benchmarks.clients.__main__ import merged
from benchmarks.clients.drivers import steps as s
from benchmarks.clients.environments import python_for, unsatisfied
from benchmarks.clients.registry import CLIENTS, STYLES, Client, chosen
from benchmarks.clients.run import START, drive
from benchmarks.measurements.clients import clients_section, conformance_section
from benchmarks.measurements.results import Results

TEXT = "No cooking."


def test_every_client_has_its_driver() -> None:
    drivers = Path(s.__file__).parent
    assert {client.driver for client in CLIENTS if not (drivers / f"{client.driver}.py").is_file()} == set()
    assert [client.name for client in chosen(["litellm", "openai-create"])] == ["openai-create", "litellm"]
    with pytest.raises(ValueError, match=r"got opanai; wanted some of openai-create, "):
        chosen(["opanai"])


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (s.check_answer, "Paris.", "Rome."),
        (lambda shown: s.check_refusal(shown, TEXT), TEXT, TEXT + TEXT),
        (lambda shown: s.check_refusal(shown, TEXT), f"Well. {TEXT}", f"81. {TEXT}"),
        (lambda shown: s.check_refusal(shown, TEXT), TEXT, ""),
        (s.check_city, '{"city": "Rome"}', '{"city": "Oslo"}'),
    ],
)
def test_what_a_client_shows_is_judged(check: Callable[[str], str], good: str, bad: str) -> None:
    assert check(good)
    with pytest.raises(s.StepFailedError, match="wanted"):
        check(bad)


def test_an_exception_shows_a_refusal_too() -> None:
    def refuse() -> None:
        raise LookupError(TEXT)

    assert s.raised(refuse, LookupError, TEXT) == f"LookupError: {TEXT}"
    with pytest.raises(s.StepFailedError, match="wanted LookupError"):
        s.raised(lambda: "81", LookupError)


def test_a_conversation_holds_what_the_client_appends() -> None:
    seen: list[list[Any]] = []

    def turn(history: list[Any]) -> tuple[list[Any], str]:
        seen.append([*history])
        shown = {s.QUESTION: "Paris.", s.REFUSED: TEXT}.get(history[-1]["content"], "Madrid.")
        return [{"role": "assistant", "content": shown, "own": True}], shown

    steps = s.spoken(turn, TEXT)
    assert [steps[name]() for name in (s.ANSWER, s.ABSTENTION, s.HISTORY)] == ["Paris.", TEXT, "Madrid."]
    assert [message.get("own") for message in seen[-1]] == [None, True, None, True, None]


def test_an_environment_is_this_one_where_it_has_what_is_needed(tmp_path: Path) -> None:
    installed = f"openai=={metadata.version('openai')}"
    assert unsatisfied([installed]) == []
    assert unsatisfied(["openai<1"]) == ["openai<1"], "a version that clashes"
    assert unsatisfied(["no-such-package"]) == ["no-such-package"]
    assert python_for(Client("x", "x", (installed,)), tmp_path) == Path(sys.executable)
    assert list(tmp_path.iterdir()) == []


def served(style: str = "refusal") -> s.Served:
    return s.Served("http://127.0.0.1:9/v1", "none", style, TEXT, None)


def test_a_client_that_fails_is_a_row(tmp_path: Path) -> None:
    """A real process, whose every request fails: nothing listens at that port."""
    rows = drive(chosen(["openai-stream"])[0], served(), tmp_path)
    assert [row["step"] for row in rows] == [s.STREAM, s.ABSTENTION, s.HISTORY]
    assert {row["outcome"] for row in rows} == {"failed"}
    assert all("APIConnectionError" in row["said"] for row in rows)
    assert rows[0]["version"] == metadata.version("openai")


def test_a_driver_that_ends_is_a_row(tmp_path: Path) -> None:
    (row,) = drive(Client("gone", "no_such_driver", ("openai",)), served(), tmp_path)
    assert (row["step"], row["outcome"]) == (START, "failed")
    assert "no_such_driver" in row["said"]


def row(client: str, step: str = s.ANSWER, outcome: str = "passed", style: str = "refusal") -> dict[str, Any]:
    return {"client": client, "package": "p", "version": "1", "style": style, "step": step} | {
        "outcome": outcome,
        "said": "said",
        "commit": "c",
    }


def test_rows_of_other_clients_stay() -> None:
    old = [row("litellm"), row("openai-create", outcome="failed"), row("retired")]
    found = merged([row("openai-create")], old)
    assert [(each["client"], each["outcome"]) for each in found] == [("openai-create", "passed"), ("litellm", "passed")]


def test_rows_are_shown(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert (clients_section(results), conformance_section(results)) == ("", "")
    results.folder.mkdir(parents=True)
    rows = [row("litellm"), row("litellm", s.HISTORY, "failed"), row("litellm", style=STYLES[0])]
    found = {"command": "python -m it", "environment": {"commit": "c"}, "rows": rows}
    (results.folder / "clients.json").write_text(json.dumps(found), encoding="utf-8")
    text = clients_section(results)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "`litellm`" in line]
    assert ["`litellm`", "p 1", "`refusal`", "yes", "-", "-", "-", "-", "**no**"] in lines
    assert "What failed:" in text
    assert "Sample: 3 steps of 1 clients\n" in text
    later = {**found, "rows": [*rows, {**row("openai-create"), "commit": "d"}]}
    (results.folder / "clients.json").write_text(json.dumps(later), encoding="utf-8")
    assert "Sample: 4 steps of 2 clients; 3 at commit `c`, 1 at commit `d`\n" in clients_section(results)
