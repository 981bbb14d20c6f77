"""API keys: hashed at rest, compared in constant time, each with one role and its own policy.

A key is 256 random bits, so one plain SHA-256 protects it: a slow hash defends guessable secrets only.
"""

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from server.config import GuardNames
from server.errors import ConfigError, ForbiddenError, InvalidKeyError

OPEN_PATHS = frozenset(
    {"/health", "/ready", "/ping", "/v1/health/live", "/v1/health/ready", "/v2/health/live", "/v2/health/ready"}
)
"""What an orchestrator's probes need: they hold no secrets and answer without a key."""

METRICS_PATH = "/metrics"

_KEY_PREFIX = "sk-skillguard-"
_NEXT_STEP = (
    'expected {"keys": [{"name": …, "sha256": …, "role": "user" | "operator" | "metrics"}]}, '
    'where a key may also have "shadow": [guard names]'
)


class Role(StrEnum):
    """`user` generates; `operator` also sees scores, thresholds and metrics; `metrics` reads /metrics only."""

    USER = "user"
    OPERATOR = "operator"
    METRICS = "metrics"


class KeyEntry(BaseModel):
    """One key as the keys file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    role: Role
    shadow: GuardNames = ()
    """Guards that only watch this key's requests, besides those that only watch everybody's."""


class _KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyEntry, ...] = Field(min_length=1)


class Caller(BaseModel):
    """Who sent a request, as far as the server knows."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role
    shadow: tuple[str, ...] = ()
    """As the key has it."""

    @property
    def is_operator(self) -> bool:
        """Whether scores, thresholds and reasons may be shown."""
        return self.role is Role.OPERATOR


def new_key(name: str, role: Role, shadow: Iterable[str] = ()) -> tuple[str, KeyEntry]:
    """A fresh key, to be shown once, and the entry that goes into the keys file."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        digest, once = hashlib.sha256(key.encode()).hexdigest(), tuple(dict.fromkeys(shadow))
        return key, KeyEntry(name=name, sha256=digest, role=role, shadow=once)
    except ValidationError as error:
        raise ConfigError(
            f"key name: got {name!r}, wanted 1 to 64 letters, digits, '_', '.' or '-'; choose another name"
        ) from error


def load_keys(path: Path) -> tuple[KeyEntry, ...]:
    """Reads a keys file; anything unclear in it stops the start, since the alternative is an open server."""
    try:
        keys = _KeysFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"keys file {path}: cannot be read ({error.strerror}); give a readable file") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"keys file {path}: {where}: {first['msg']}; {_NEXT_STEP}") from error
    for field, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ConfigError(f"keys file {path}: {field} {twice[0]!r} is there twice; remove one of the entries")
    return keys


class KeyRing:
    """Decides who a caller is and which paths are theirs. Without keys every path is open to everybody."""

    def __init__(self, keys: tuple[KeyEntry, ...], anonymous: Role) -> None:
        self._keys = keys
        self._anonymous = Caller(name="anonymous", role=anonymous)

    def admit(self, path: str, authorization: bytes | None) -> Caller:
        """The caller behind an Authorization header, if this path is theirs.

        Raises InvalidKeyError or ForbiddenError. Every stored hash is compared, so that the time taken tells
        nothing about which of them came close.
        """
        if not self._keys or path in OPEN_PATHS:
            return self._anonymous
        digest = hashlib.sha256(_bearer_token(authorization)).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise InvalidKeyError("The API key is not known to this server; ask its operator for one.")
        caller = Caller(name=found.name, role=found.role, shadow=found.shadow)
        if path == METRICS_PATH and caller.role is Role.USER:
            raise ForbiddenError("A key of role user cannot read /metrics; use one of role metrics or operator.")
        if path != METRICS_PATH and caller.role is Role.METRICS:
            raise ForbiddenError("A key of role metrics can only read /metrics; use one of role user or operator.")
        return caller


def _bearer_token(authorization: bytes | None) -> bytes:
    if not authorization:
        raise InvalidKeyError("No API key: send the header 'Authorization: Bearer <key>'.")
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise InvalidKeyError("The Authorization header is not of the form 'Bearer <key>'.")
    return token.strip()
