"""`skillguard guards` against a server that listens."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from guards.artifact.pins import ArtifactPath
from guards.core.policy import Rule
from server.auth import Role, new_key
from server.cli.main import build_parser, main
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import keys_file, listening

pytestmark = pytest.mark.anyio

ADMIN, OPERATOR = new_key("ops", Role.ADMIN), new_key("olga", Role.OPERATOR)
NEW = replace(guard(), digest="1" * 64, rule=Rule(taus=(0.75,)))


@asynccontextmanager
async def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedEngine]:
    """One whose address and admin's key are in the environment."""
    engine = ScriptedEngine()
    engine.offers["demo"] = NEW
    async with listening(engine, api_keys_file=keys_file(folder, ADMIN[1], OPERATOR[1])) as url:
        monkeypatch.setenv("SKILLGUARD_URL", url.removesuffix("/v1"))
        monkeypatch.setenv("SKILLGUARD_KEY", ADMIN[0])
        yield engine


async def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What the command prints, or what it complains of."""
    assert await asyncio.to_thread(main, ["guards", *words]) == status
    out, err = capsys.readouterr()
    assert (out == "") == (status != 0)
    return out + err


async def test_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server(tmp_path, monkeypatch) as engine:
        listed = await said(capsys, "list")
        assert "policy version 1" in listed
        assert [word for word in listed.split() if word in ("demo", "enforce", "yes")] == ["demo", "enforce", "yes"]
        for command, mode in (("shadow", "shadow"), ("disable", "off"), ("enable", "enforce")):
            told = await said(capsys, command, "demo")
            assert told.startswith(f"demo: {mode}, taus 0.5, artifact {'0' * 12}\n")
            assert "Holds until the server restarts" in told
        assert "taus 0.75" in await said(capsys, "set-tau", "demo", "--factor", "1.5")
        report = json.loads(await said(capsys, "set-tau", "demo", "--taus", "0.4", "--json"))
        assert (report["taus"], report["policy_version"]) == ([0.4], 6)
        assert "demo enforce 0.4 x 0.8 - yes" in " ".join((await said(capsys, "list")).split())
        assert f"artifact {'1' * 12}" in await said(capsys, "reload", "demo", "--path", "/new/demo")
        await said(capsys, "reload", "demo")
        assert engine.offered_from == [ArtifactPath(Path("/new/demo")), None]
        assert json.loads(await said(capsys, "list", "--json"))["policy_version"] == 8


async def test_what_the_server_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server(tmp_path, monkeypatch):
        assert "HTTP 404: No guard named 'dmeo'" in await said(capsys, "enable", "dmeo", status=1)
        assert "HTTP 400: 'taus[0]'" in await said(capsys, "set-tau", "demo", "--taus", "-1", status=1)
        monkeypatch.setenv("SKILLGUARD_KEY", OPERATOR[0])
        assert "HTTP 403: /admin takes keys of the role admin" in await said(capsys, "list", status=1)
        monkeypatch.delenv("SKILLGUARD_KEY")
        assert "HTTP 401" in await said(capsys, "list", status=1)


async def test_a_key_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "key").write_text(f"{ADMIN[0]}\n")
    async with server(tmp_path, monkeypatch):
        monkeypatch.delenv("SKILLGUARD_KEY")
        assert "demo" in await said(capsys, "list", "--key-file", str(file))
        for text in ("", "two words", "schlüssel"):
            file.write_text(text)
            assert "wanted the key alone" in await said(capsys, "list", "--key-file", str(file), status=1)
        assert "cannot be read" in await said(capsys, "list", "--key-file", str(tmp_path / "none"), status=1)


async def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://127.0.0.1:9", "nonsense"):
        told = await said(capsys, "list", "--url", url, status=1)
        assert f"{url}: no skillguard server answers there" in told
        assert "start one with `skillguard serve`" in told


@pytest.mark.parametrize("command", [("guards", "list"), ("inspect", "http://x"), ("evaluate", "--output=x")])
def test_no_flag_takes_a_key(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Its value would stand in the list of processes."""
    for flag in ("--key", "--api-key"):
        with pytest.raises(SystemExit):
            build_parser().parse_args([*command, flag, "sk-x"])
        assert "unrecognized arguments" in capsys.readouterr().err
    assert build_parser().parse_args([*command, "--key-file", "key"]).key_file == Path("key"), "the control"
