"""Decides who a caller is and which paths are theirs, by a keys file that may change at any time."""

import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.auth import ADMINS, ANONYMOUS, DEFAULT_TENANT, Caller, KeyEntry, Role, TenantPolicy, key_digest
from server.errors import ConfigError, ForbiddenError, InvalidKeyError, NotReadyError
from server.tenants import Tenants, parse_tenants, read_tenants

logger = logging.getLogger("skillguard.server")

OPEN_PATHS = frozenset(
    {"/health", "/ready", "/ping", "/v1/health/live", "/v1/health/ready", "/v2/health/live", "/v2/health/ready"}
)
"""What an orchestrator's probes need: they hold no secrets and answer without a key."""

PAGE_PATH = "/ui"
"""The operator's page and, below it, its files: the same for everybody, and without a secret."""

METRICS_PATH = "/metrics"
ADMIN_PATH = "/admin"
"""Whatever lies under it is for keys of the role admin alone."""

KEY_HEADERS = (b"authorization", b"x-api-key")
"""Where a key may stand; LiteLLM's guardrails send the second."""

_RETRY_AFTER_SECONDS = 5
_SETTLED_SECONDS = 2
"""Coarser than any file system's clock: a file changed twice within a tick of it may look unchanged."""

_TOLD_OF_A_DIGEST = 12

Check = Callable[[Tenants], None]
"""Raises ConfigError for tenants that this server cannot have."""


@dataclass(frozen=True)
class Change:
    """What was in force before the keys file changed and what is after it, made of what JSON has, for the audit log.

    Each side: `reason`, why the file cannot be used, and those `tenants` that differ. Of a key there is its name, its
    role and the beginning of its digest.
    """

    before: Mapping[str, object]
    after: Mapping[str, object]


class KeysFile:
    """The keys of a file, looked at again with each request, so that a change counts from the next one on.

    A file that cannot be used any more lets nobody in who was not in before, and nobody whose hash it no longer holds:
    so a revoked key stops at once, whatever else is wrong with the file. The others keep the policy of the last good
    one, and `trouble` says so.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that cannot be used."""
        self._path = path
        self._check: Check = lambda tenants: None
        self._text: bytes | None = None
        self._seen: tuple[int, ...] | None = None
        self._told: tuple[str | None, Mapping[str, object]] | None = None
        self.changes: list[Change] = []
        """Those that nobody has recorded yet, the oldest first."""
        self._ever: frozenset[str] = frozenset()
        """The tenants so far. Of one that is gone, counters tell to the end."""
        self._take(read_tenants(path))
        self.refresh()

    def require(self, check: Check) -> None:
        """Holds this file to a check from now on. Raises what it raises."""
        self.try_out(check)
        self._check = check

    def try_out(self, check: Check) -> None:
        """Raises what the check raises for the last good file."""
        check(self._tenants)

    @property
    def tenants(self) -> Sequence[str]:
        """The names in the last good file; admins are one of them."""
        return (*self._tenants.tenants, *([ADMINS] if self._tenants.admins else ()))

    @property
    def in_force(self) -> Mapping[str, object]:
        """What holds now, as a side of a Change has it, of all tenants that have keys."""
        return {"reason": self.trouble, "tenants": _in_force(self._callers)}

    def find(self, digest: str) -> Caller | None:
        """Whose key that is. Every stored hash is compared, so that the time taken tells nothing about them."""
        found = None
        for sha256, caller in self._callers:
            if hmac.compare_digest(sha256, digest):
                found = caller
        return found

    def refresh(self) -> None:
        """Takes in the file where it is not as it was."""
        try:
            if _signature(os.stat(self._path)) == self._seen:
                return
            with open(self._path, "rb") as file:
                status, text = os.fstat(file.fileno()), file.read()
        except OSError as error:
            self._seen = self._text = None
            self._keep((), f"keys file {self._path}: cannot be read ({error.strerror})")
            return
        # Of the two times, mtime is whoever writes the file's to set.
        settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
        self._seen = _signature(status) if settled else None
        if text == self._text:
            return
        self._text = text
        try:
            tenants = parse_tenants(self._path, text)
            self._check(tenants)
        except ConfigError as error:
            self._keep([each for each in self._callers if each[0].encode() in text], str(error))
        else:
            self._take(tenants)
            logger.info("%s: %d keys of %d tenants", self._path, len(self._callers), len(tenants.tenants))

    def _take(self, tenants: Tenants) -> None:
        self._tenants = tenants
        policy_of: Mapping[str, TenantPolicy] = tenants.tenants
        self._ever |= policy_of.keys()
        self._callers: Sequence[tuple[str, Caller]] = [
            (key.sha256, self._caller(name, key, policy_of.get(name, TenantPolicy()))) for name, key in tenants.keys
        ]
        self.trouble: str | None = None
        """Why the file as it is now cannot be used. For the operator."""
        self._note()

    def _caller(self, tenant: str, key: KeyEntry, policy: TenantPolicy) -> Caller:
        of_all = tenant in (ADMINS, DEFAULT_TENANT) or len(self._ever) == 1
        return Caller(name=key.name, role=key.role, tenant=tenant, policy=policy, sees_server=of_all)

    def _keep(self, callers: Sequence[tuple[str, Caller]], trouble: str) -> None:
        if trouble != self.trouble:
            logger.error("%s; %d keys go on under the last good one", trouble, len(callers))
        self._callers, self.trouble = callers, trouble
        self._note()

    def _note(self) -> None:
        last, self._told = self._told, (self.trouble, _in_force(self._callers))
        if last is not None and last != self._told:
            self.changes.append(Change(_side(last, self._told[1]), _side(self._told, last[1])))


class KeyRing:
    """Without a keys file every path is open to everybody."""

    def __init__(self, file: KeysFile | None, anonymous: Role) -> None:
        """`anonymous`: what callers are where there is no file."""
        self.file = file
        role = anonymous if file is None else Role.USER
        self._anonymous = Caller(name=ANONYMOUS, role=role, sees_server=file is None)

    def admit(self, path: str, authorizations: Sequence[bytes], api_keys: Sequence[bytes] = ()) -> Caller:
        """The caller behind the headers of KEY_HEADERS, if this path is theirs.

        Raises InvalidKeyError or ForbiddenError; NotReadyError where the key may be one of a file that cannot be used.
        """
        if self.file is None:
            if is_admin_path(path):
                require_admin(self._anonymous)
            return self._anonymous
        self.file.refresh()
        try:
            caller = self.file.find(key_digest(_token(authorizations, api_keys)))
        except InvalidKeyError:
            if is_open(path):
                return self._anonymous
            raise
        if is_open(path):
            return caller or self._anonymous
        if caller is None and self.file.trouble is not None:
            raise NotReadyError("The server's keys are being changed; try again later.", _RETRY_AFTER_SECONDS)
        if caller is None:
            raise InvalidKeyError("The API key is not known to this server; ask its operator for one.")
        if path == METRICS_PATH and caller.role is Role.USER:
            raise ForbiddenError("A key of role user cannot read /metrics; use one of role metrics or operator.")
        if path != METRICS_PATH and caller.role is Role.METRICS:
            raise ForbiddenError("A key of role metrics can only read /metrics; use one of role user or operator.")
        if is_admin_path(path):
            require_admin(caller)
        return caller


def is_open(path: str) -> bool:
    """Whether it answers without a key."""
    return path in OPEN_PATHS or path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


def is_admin_path(path: str) -> bool:
    """Whether a path is for keys of the role admin alone."""
    return path == ADMIN_PATH or path.startswith(f"{ADMIN_PATH}/")


def require_admin(caller: Caller) -> None:
    """Raises ForbiddenError."""
    if caller.role is not Role.ADMIN:
        raise ForbiddenError(
            f"{ADMIN_PATH} takes keys of the role admin only, which `skillguard key add --role admin` makes."
        )


def _in_force(callers: Sequence[tuple[str, Caller]]) -> Mapping[str, object]:
    """Each tenant that has keys: its policy, as far as that says something, and its keys by name."""
    tenants: dict[str, dict[str, Any]] = {}
    for sha256, caller in callers:
        policy = caller.policy.model_dump(mode="json", include={*TenantPolicy.model_fields}, exclude_defaults=True)
        tenant = tenants.setdefault(caller.tenant, {"policy": policy, "keys": {}})
        tenant["keys"][caller.name] = {"role": caller.role.value, "sha256": sha256[:_TOLD_OF_A_DIGEST]}
    return tenants


def _side(of: tuple[str | None, Mapping[str, object]], other: Mapping[str, object]) -> Mapping[str, object]:
    reason, tenants = of
    return {"reason": reason, "tenants": {name: told for name, told in tenants.items() if other.get(name) != told}}


def _token(authorizations: Sequence[bytes], api_keys: Sequence[bytes]) -> bytes:
    """The one key that was sent. Of several, whoever stands in front may have checked another than the one we would."""
    if not any((*authorizations, *api_keys)):
        raise InvalidKeyError("No API key: send the header 'Authorization: Bearer <key>'.")
    for name, values in (("Authorization", authorizations), ("x-api-key", api_keys)):
        if len(values) > 1:
            raise InvalidKeyError(f"Got {len(values)} {name} headers; send one.")
    tokens = {*map(_bearer_token, authorizations), *(key.strip() for key in api_keys)}
    if len(tokens) > 1:
        raise InvalidKeyError("The headers Authorization and x-api-key hold different keys; send one of them.")
    return tokens.pop()


def _bearer_token(authorization: bytes) -> bytes:
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise InvalidKeyError("The Authorization header is not of the form 'Bearer <key>'.")
    return token.strip()


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
