import hashlib
import json
from pathlib import Path

import pytest

from server.auth import KeyRing, Role, load_keys, new_key
from server.errors import ConfigError, ForbiddenError, InvalidKeyError

KEYS = {role: new_key(role.value, role) for role in Role}
USER_KEY, USER = KEYS[Role.USER]
METRICS = KEYS[Role.METRICS][1]
RING = KeyRing(tuple(entry for _, entry in KEYS.values()), anonymous=Role.USER)


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_new_key_is_stored_as_its_hash_only() -> None:
    assert hashlib.sha256(USER_KEY.encode()).hexdigest() == USER.sha256
    assert USER_KEY not in USER.model_dump_json()
    assert len({new_key("ann", Role.USER)[0] for _ in range(20)}) == 20


def test_new_key_refuses_a_name_that_would_break_a_log_line() -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        new_key("ann\nroot", Role.USER)


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (Role.USER, "/v1/models"),
        (Role.OPERATOR, "/v1/models"),
        (Role.OPERATOR, "/metrics"),
        (Role.METRICS, "/metrics"),
    ],
)
def test_good_key_is_admitted(role: Role, path: str) -> None:
    caller = RING.admit(path, bearer(KEYS[role][0]))
    assert (caller.name, caller.role, caller.shadow) == (role.value, role, ())


def test_caller_brings_the_keys_own_shadow() -> None:
    key, entry = new_key("ann", Role.USER, shadow=("a", "b"))
    ring = KeyRing((USER, entry), anonymous=Role.USER)
    assert ring.admit("/v1/models", bearer(key)).shadow == ("a", "b")
    assert ring.admit("/v1/models", bearer(USER_KEY)).shadow == ()
    assert ring.admit("/ready", bearer(key)).shadow == ()


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="none"),
        pytest.param(b"", id="empty"),
        pytest.param(b"Bearer", id="scheme only"),
        pytest.param(b"Bearer ", id="no token"),
        pytest.param(b"Basic " + USER_KEY.encode(), id="other scheme"),
        pytest.param(USER_KEY.encode(), id="no scheme"),
        pytest.param(b"Bearer wrong", id="wrong"),
        pytest.param(b"Bearer \xff\xfe", id="not ASCII"),
        pytest.param(bearer(USER.sha256), id="the stored hash"),
        pytest.param(bearer(USER_KEY[:-1]), id="too short"),
        pytest.param(bearer(USER_KEY + "x"), id="too long"),
    ],
)
def test_anything_else_is_not_a_key(authorization: bytes | None) -> None:
    with pytest.raises(InvalidKeyError):
        RING.admit("/v1/models", authorization)


@pytest.mark.parametrize(
    ("role", "path"),
    [(Role.USER, "/metrics"), (Role.METRICS, "/v1/models"), (Role.METRICS, "/v1/checks")],
)
def test_role_is_not_enough(role: Role, path: str) -> None:
    with pytest.raises(ForbiddenError, match="role"):
        RING.admit(path, bearer(KEYS[role][0]))


def test_probes_need_no_key() -> None:
    assert RING.admit("/health", None).role is Role.USER
    assert RING.admit("/ready", None).role is Role.USER


def test_without_keys_every_path_is_open() -> None:
    ring = KeyRing((), anonymous=Role.USER)
    assert ring.admit("/metrics", None).role is Role.USER
    assert ring.admit("/v1/models", b"Bearer whatever").name == "anonymous"


def written(path: Path, content: object) -> Path:
    file = path / "keys.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_keys_file_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, {"keys": [USER.model_dump(mode="json"), METRICS.model_dump(mode="json")]})
    assert load_keys(file) == (USER, METRICS)


def test_shadow_in_a_keys_file_may_be_left_out(tmp_path: Path) -> None:
    bare = {name: value for name, value in ENTRY.items() if name != "shadow"}
    other = {**bare, "name": "bob", "sha256": "0" * 64, "shadow": ["a"]}
    assert [key.shadow for key in load_keys(written(tmp_path, {"keys": [bare, other]}))] == [(), ("a",)]


ENTRY = USER.model_dump(mode="json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "the file"),
        ({}, "keys: Field required"),
        ({"keys": []}, "keys: Tuple should have at least 1 item"),
        ({"keys": [ENTRY], "extra": 1}, "extra"),
        ({"keys": [{**ENTRY, "role": "root"}]}, r"keys\.0\.role"),
        ({"keys": [{**ENTRY, "sha256": "abc"}]}, r"keys\.0\.sha256"),
        ({"keys": [{**ENTRY, "sha256": ENTRY["sha256"].upper()}]}, r"keys\.0\.sha256"),
        ({"keys": [{**ENTRY, "name": "a b"}]}, r"keys\.0\.name"),
        ({"keys": [{**ENTRY, "key": "sk-plain"}]}, r"keys\.0\.key"),
        ({"keys": [{**ENTRY, "shadow": "a"}]}, r"keys\.0\.shadow.*may also have"),
        ({"keys": [{**ENTRY, "shadow": None}]}, r"keys\.0\.shadow"),
        ({"keys": [{**ENTRY, "shadow": [1]}]}, r"keys\.0\.shadow\.0"),
        ({"keys": [{**ENTRY, "shadow": ["a", "a"]}]}, r"keys\.0\.shadow: .*named twice: a; name each guard once"),
        ({"keys": [ENTRY, {**ENTRY, "name": "bob"}]}, "sha256 .* is there twice"),
        ({"keys": [ENTRY, {**ENTRY, "sha256": "0" * 64}]}, "name 'user' is there twice"),
    ],
    ids=range(16),
)
def test_unclear_keys_file_is_refused(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_keys(written(tmp_path, content))


def test_missing_keys_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_keys(tmp_path / "none.json")
