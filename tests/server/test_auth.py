import hashlib
from pathlib import Path

import pytest

from server.auth import Role, TenantPolicy, key_digest, new_key
from server.errors import ConfigError, ForbiddenError, InvalidKeyError
from server.keyring import KeyRing, KeysFile
from tests.server.harness import keys_file

KEYS = {role: new_key(role.value, role) for role in Role}
USER_KEY, USER = KEYS[Role.USER]


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    file = keys_file(tmp_path, *(entry for _, entry in KEYS.values()), requests_per_minute=9)
    return KeyRing(KeysFile(file), anonymous=Role.OPERATOR)


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_new_key_is_stored_as_its_hash_only() -> None:
    assert hashlib.sha256(USER_KEY.encode()).hexdigest() == USER.sha256 == key_digest(USER_KEY.encode())
    assert USER_KEY not in USER.model_dump_json()
    assert len({new_key("ann", Role.USER)[0] for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["ann\nroot", "ann\n", "", "a" * 65, "anonymous", "admins"])
def test_new_key_refuses_a_name_that_would_mislead_in_a_log_line(name: str) -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        new_key(name, Role.USER)


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (Role.USER, "/v1/models"),
        (Role.OPERATOR, "/v1/models"),
        (Role.OPERATOR, "/metrics"),
        (Role.METRICS, "/metrics"),
        (Role.ADMIN, "/metrics"),
        (Role.ADMIN, "/admin/guards"),
    ],
)
def test_good_key_is_admitted(ring: KeyRing, role: Role, path: str) -> None:
    caller = ring.admit(path, [bearer(KEYS[role][0])])
    assert (caller.name, caller.role, caller.tenant) == (role.value, role, "admins" if role is Role.ADMIN else "team")
    assert caller.policy.requests_per_minute == (None if role is Role.ADMIN else 9)


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
def test_anything_else_is_not_a_key(ring: KeyRing, authorization: bytes | None) -> None:
    given = [] if authorization is None else [authorization]
    with pytest.raises(InvalidKeyError):
        ring.admit("/v1/models", given)
    assert ring.admit("/ready", given).role is Role.USER, "probes are open, and to nobody more than to users"


@pytest.mark.parametrize("first", [b"Bearer wrong", bearer(USER_KEY)], ids=["a wrong key first", "the same key twice"])
def test_two_headers_are_refused_whichever_comes_first(ring: KeyRing, first: bytes) -> None:
    """A gateway may have checked the other one."""
    with pytest.raises(InvalidKeyError, match="2 Authorization headers; send one"):
        ring.admit("/v1/models", [first, bearer(USER_KEY)])


def test_a_key_may_come_as_x_api_key(ring: KeyRing) -> None:
    assert ring.admit("/v1/models", [], [USER_KEY.encode()]).name == "user"
    assert ring.admit("/v1/models", [bearer(USER_KEY)], [USER_KEY.encode()]).name == "user", "the same one twice"


@pytest.mark.parametrize(
    ("authorizations", "api_keys"),
    [
        pytest.param([], [b"wrong"], id="wrong"),
        pytest.param([], [b""], id="empty"),
        pytest.param([], [bearer(USER_KEY)], id="with a scheme"),
        pytest.param([], [USER_KEY.encode()] * 2, id="twice"),
        pytest.param([bearer(USER_KEY)], [b"wrong"], id="another beside a good one"),
        pytest.param([bearer(USER_KEY)], [b""], id="an empty one beside a good one"),
        pytest.param([b"Bearer wrong"], [USER_KEY.encode()], id="a good one beside another"),
        pytest.param([b""], [USER_KEY.encode()], id="a good one beside an empty one"),
        pytest.param([bearer(USER_KEY)] * 2, [USER_KEY.encode()], id="three"),
        pytest.param([bearer(USER_KEY)], [KEYS[Role.OPERATOR][0].encode()], id="two good ones"),
    ],
)
def test_two_ways_to_one_key_are_no_way_around_it(
    ring: KeyRing, authorizations: list[bytes], api_keys: list[bytes]
) -> None:
    with pytest.raises(InvalidKeyError):
        ring.admit("/v1/models", authorizations, api_keys)
    assert ring.admit("/ready", authorizations, api_keys).name == "anonymous"


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (Role.USER, "/metrics"),
        (Role.METRICS, "/v1/models"),
        (Role.METRICS, "/v1/checks"),
        *((role, "/admin/guards") for role in Role if role is not Role.ADMIN),
    ],
)
def test_role_is_not_enough(ring: KeyRing, role: Role, path: str) -> None:
    with pytest.raises(ForbiddenError, match="role"):
        ring.admit(path, [bearer(KEYS[role][0])])


def test_probes_know_a_key_that_they_do_not_need(ring: KeyRing) -> None:
    assert ring.admit("/ready", [bearer(KEYS[Role.OPERATOR][0])]).is_operator


@pytest.mark.parametrize("role", [Role.USER, Role.OPERATOR])
def test_without_a_file_every_path_is_open(role: Role) -> None:
    ring = KeyRing(None, anonymous=role)
    assert ring.admit("/metrics", []).role is role
    with pytest.raises(ForbiddenError, match="role admin"):
        ring.admit("/admin/guards", [])
    caller = ring.admit("/v1/models", [b"Bearer whatever"])
    assert (caller.name, caller.tenant, caller.role, caller.policy) == ("anonymous", "anonymous", role, TenantPolicy())
