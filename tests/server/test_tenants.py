"""What a keys file may hold, and how a command changes it."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from guards.core.verdict import GuardMode
from server.auth import GuardSetting, Role, new_key
from server.config import AbstainStyle
from server.errors import ConfigError
from server.tenants import Tenant, Tenants, changing, read_tenants

ENTRY = new_key("ann", Role.OPERATOR)[1]
KEY = ENTRY.model_dump(mode="json")
OTHER = {"name": "bob", "sha256": "0" * 64}


def written(folder: Path, content: object) -> Path:
    file = folder / "keys.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def of(**tenant: Any) -> dict[str, Any]:
    return {"tenants": {"team-a": tenant}}


def test_everything_that_a_tenant_may_have(tmp_path: Path) -> None:
    policy = {
        "guards": {"a": {"mode": "shadow"}, "b": {"mode": "off"}, "c": {"tau_factor": 1.5}},
        "abstain_style": "refusal",
        "abstain_text": "Ask the help desk.",
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrent_requests": 4,
    }
    tenants = read_tenants(written(tmp_path, of(keys=[KEY, OTHER], **policy)))
    assert tenants.tenants == {
        "team-a": Tenant(
            keys=(ENTRY, tenants.tenants["team-a"].keys[1]),
            guards={
                "a": GuardSetting(mode=GuardMode.SHADOW),
                "b": GuardSetting(mode=GuardMode.OFF),
                "c": GuardSetting(tau_factor=1.5),
            },
            abstain_style=AbstainStyle.REFUSAL,
            abstain_text="Ask the help desk.",
            requests_per_minute=60,
            tokens_per_minute=1000,
            concurrent_requests=4,
        )
    }
    assert [(name, key.name, key.role) for name, key in tenants.keys] == [
        ("team-a", "ann", Role.OPERATOR),
        ("team-a", "bob", Role.USER),
    ]


@pytest.mark.parametrize("content", [{"tenants": {}}, of(), of(keys=[])])
def test_a_file_may_have_no_key(tmp_path: Path, content: object) -> None:
    assert read_tenants(written(tmp_path, content)).keys == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[]", "the file"),
        ({}, "tenants: Field required"),
        ({"keys": [KEY]}, r"Field required; wanted \{\"tenants\": "),
        ({**of(), "extra": 1}, "extra"),
        ({"tenants": {"a b": {}}}, r"tenants\.a b"),
        ({"tenants": {"anonymous": {}}}, r"tenants\.anonymous"),
        (of(key=[KEY]), r"tenants\.team-a\.key: Extra inputs"),
        (of(keys=[{**KEY, "role": "root"}]), r"keys\.0\.role"),
        (of(keys=[{**KEY, "sha256": "abc"}]), r"keys\.0\.sha256"),
        (of(keys=[{**KEY, "sha256": KEY["sha256"].upper()}]), r"keys\.0\.sha256"),
        (of(keys=[{**KEY, "name": "a b"}]), r"keys\.0\.name"),
        (of(keys=[{**KEY, "name": "anonymous"}]), r"keys\.0\.name"),
        (of(keys=[{**KEY, "key": "sk-plain"}]), r"keys\.0\.key"),
        (of(keys=[KEY, {**OTHER, "sha256": KEY["sha256"]}]), "sha256 .* is there twice"),
        ({"tenants": {"a": {"keys": [KEY]}, "b": {"keys": [{**KEY, **OTHER, "name": "ann"}]}}}, "name 'ann' is there"),
        ('{"tenants": {"a": {"guards": {"x": {}}, "guards": {}}}}', "'guards' is said twice"),
        ('{"tenants": {"a": {}, "a": {}}}', "'a' is said twice"),
        (of(guards=["a"]), r"team-a\.guards"),
        (of(guards={"a": "shadow"}), r"guards\.a"),
        (of(guards={"a": {"mode": "none"}}), r"guards\.a\.mode"),
        (of(guards={"a": {"tau": 3}}), r"guards\.a\.tau"),
        (of(guards={"a": {"tau_factor": 0.49}}), r"tau_factor: .*greater than or equal to 0\.5"),
        (of(guards={"a": {"tau_factor": 2.01}}), r"tau_factor: .*less than or equal to 2"),
        (of(guards={"a": {"tau_factor": "nan"}}), "tau_factor"),
        (of(abstain_style="polite"), "abstain_style"),
        (of(abstain_text=" "), "abstain_text"),
        (of(requests_per_minute=0), "requests_per_minute"),
        (of(tokens_per_minute=-1), "tokens_per_minute"),
        (of(concurrent_requests=0), "concurrent_requests"),
    ],
    ids=range(31),
)
def test_an_unclear_file_is_refused(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_tenants(written(tmp_path, content))


def test_nothing_but_names_is_quoted(tmp_path: Path) -> None:
    """Somebody may have put a key where its hash belongs."""
    with pytest.raises(ConfigError) as caught:
        read_tenants(written(tmp_path, of(keys=[{**KEY, "sha256": "sk-plain-secret"}])))
    assert "sk-plain" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_tenants(tmp_path / "none.json")


def test_a_change_is_all_or_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, of(keys=[KEY], requests_per_minute=3))
    before = path.read_text()

    def fail() -> None:
        with changing(path) as held:
            held[0] = Tenants(tenants={})
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]
    with changing(path) as held:
        tenant = held[0].tenants["team-a"]
        held[0] = Tenants(tenants={"team-a": tenant.model_copy(update={"keys": ()})})
    assert read_tenants(path).tenants == {"team-a": Tenant(requests_per_minute=3)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, of(keys=[KEY]))
    before = path.read_text()
    with pytest.raises(ConfigError, match="is there twice"), changing(path) as held:
        held[0] = Tenants(tenants={**held[0].tenants, "team-b": held[0].tenants["team-a"]})
    assert path.read_text() == before


def test_two_commands_at_a_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with changing(path):
        with pytest.raises(ConfigError, match=r"another command is changing it; try again"), changing(path):
            pytest.fail("must not get in")
        assert (tmp_path / "keys.json.new").exists(), "and leaves the first one's work alone"
    assert read_tenants(path) == Tenants(tenants={})


def test_a_link_stays_one(tmp_path: Path) -> None:
    real = written(tmp_path, of(keys=[KEY]))
    link = tmp_path / "link.json"
    link.symlink_to(real)
    with changing(link) as held:
        held[0] = Tenants(tenants={})
    assert link.is_symlink()
    assert read_tenants(real).keys == []
