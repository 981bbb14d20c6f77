"""Who a caller is and what holds for them: keys hashed at rest, each with a role and of a tenant with its policy.

A key is 256 random bits, so one plain SHA-256 protects it: a slow hash defends guessable secrets only.
"""

import hashlib
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from guards.core.verdict import GuardMode
from server.config import AbstainStyle, Line
from server.errors import ConfigError

KEY_PREFIX = "sk-skillguard-"
ANONYMOUS = "anonymous"
"""Name and tenant of whoever sent no key; nobody else may be called so."""
ADMINS = "admins"
"""Whose keys of the role admin are: no tenant's, and none may be called so."""

DEFAULT_TENANT = "default"
"""Of keys that are given no other: the operator's own, who may know of all tenants what belongs to none of them."""

NAME_PATTERN = rf"^(?!(?:{ANONYMOUS}|{ADMINS})\Z)[A-Za-z0-9_.-]{{1,64}}\Z"
"""Fit for a log line and a label. pydantic's own engine has no look-ahead, so whoever uses it says python-re."""


LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
"""By how much taus may be moved without calibrating again."""


class Role(StrEnum):
    """`user` generates; `operator` also sees scores, thresholds and metrics; `metrics` reads /metrics only.

    `admin` is an operator who may also change how guards judge while the server runs.
    """

    USER = "user"
    OPERATOR = "operator"
    METRICS = "metrics"
    ADMIN = "admin"


class KeyEntry(BaseModel):
    """One key as the keys file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", regex_engine="python-re")

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\Z")]
    role: Role = Role.USER


class GuardSetting(BaseModel):
    """How one guard judges a tenant's requests. What is left out is as the server has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: GuardMode | None = None
    tau_factor: float = Field(1.0, ge=LEAST_FACTOR, le=MOST_FACTOR)
    """Times the server's taus. Above 1 the guard fires earlier. What lies outside the bounds is another guard,
    with other rates than those measured: calibrate one."""


class TenantPolicy(BaseModel):
    """What holds for a tenant's requests; None is as the server has it, and without a limit.

    A minute's limit is a bucket of that size which refills evenly. Tokens count as they are read and written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guards: Mapping[str, GuardSetting] = {}
    abstain_style: AbstainStyle | None = None
    abstain_text: Line | None = None
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_requests: int | None = Field(None, ge=1)


class Caller(BaseModel):
    """Who sent a request, as far as the server knows."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role
    tenant: str = ANONYMOUS
    policy: TenantPolicy = TenantPolicy()
    sees_server: bool = False
    """Whether what is of all tenants together may be shown, by a role that is shown it at all: metrics, how much stands
    in the audit log, what is wrong with the keys file."""

    @property
    def is_operator(self) -> bool:
        """Whether scores, thresholds and reasons may be shown."""
        return self.role in (Role.OPERATOR, Role.ADMIN)

    @property
    def sees_all_tenants(self) -> bool:
        """Whether other tenants' verdicts may be shown."""
        return self.role is Role.ADMIN


def new_key(name: str, role: Role) -> tuple[str, KeyEntry]:
    """A fresh key, to be shown once, and the entry that goes into the keys file. Raises ConfigError for the name."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        return key, KeyEntry(name=name, sha256=key_digest(key.encode()), role=role)
    except ValidationError as error:
        raise ConfigError(
            f"key name: got {name!r}, wanted 1 to 64 letters, digits, '_', '.' or '-', and neither {ANONYMOUS!r} nor "
            f"{ADMINS!r}; choose another name"
        ) from error


def key_digest(key: bytes) -> str:
    """What a keys file holds of a key."""
    return hashlib.sha256(key).hexdigest()
