"""The keys file: tenants, each with its policy and its keys. Edited by hand, and by `skillguard key`."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from server.auth import ADMINS, NAME_PATTERN, KeyEntry, Role, TenantPolicy
from server.errors import ConfigError

TenantName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

_NEXT_STEP = (
    'wanted {"tenants": {NAME: {"keys": [{"name", "sha256", "role": "user" | "operator" | "metrics"}], and any of '
    '"guards": {GUARD: {"mode": "enforce" | "shadow" | "off", "tau_factor": 0.5 to 2}}, "abstain_style", '
    '"abstain_text", "requests_per_minute", "tokens_per_minute", "concurrent_requests"}}, '
    '"admins": [{"name", "sha256", "role": "admin"}]}'
)


class Tenant(TenantPolicy):
    """One tenant as the keys file holds it."""

    keys: tuple[KeyEntry, ...] = ()


class Tenants(BaseModel):
    """The whole file. One without any key lets nobody in. Keys of the role admin are of no tenant."""

    model_config = ConfigDict(frozen=True, extra="forbid", regex_engine="python-re")

    tenants: Mapping[TenantName, Tenant]
    admins: tuple[KeyEntry, ...] = ()

    @property
    def keys(self) -> list[tuple[str, KeyEntry]]:
        """Every key behind its tenant's name, or ADMINS."""
        of_tenants = [(name, key) for name, tenant in self.tenants.items() for key in tenant.keys]
        return of_tenants + [(ADMINS, key) for key in self.admins]


def read_tenants(path: Path) -> Tenants:
    """The file's content. Raises ConfigError: anything unclear stops the start, since the alternative is open."""
    try:
        return parse_tenants(path, path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"keys file {path}: cannot be read ({error.strerror}); name a readable one; `skillguard key add` makes one"
        ) from error


def parse_tenants(path: Path, text: bytes) -> Tenants:
    """The content of a file at `path`. Raises ConfigError, which quotes nothing but names."""
    try:
        tenants = Tenants.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"keys file {path}: {where}: {first['msg']}; {_NEXT_STEP}") from error
    json.loads(text, object_pairs_hook=partial(_each_once, path))
    for name, key in tenants.keys:
        if (key.role is Role.ADMIN) != (name == ADMINS):
            raise ConfigError(
                f"keys file {path}: key {key.name!r} of {name!r} has the role {key.role.value}; those of role admin "
                f"stand in {ADMINS!r}, beside 'tenants', and no others do"
            )
    keys = [key for _, key in tenants.keys]
    for field, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ConfigError(f"keys file {path}: {field} {twice[0]!r} is there twice; remove one of the entries")
    return tenants


def _each_once(path: Path, pairs: Sequence[tuple[str, object]]) -> None:
    """Raises ConfigError for an object that says one name twice, of which the former would count for nothing."""
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ConfigError(f"keys file {path}: {twice[0]!r} is said twice of one thing; remove one of them")


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[Tenants]]:
    """Gives the file's content as the one item of a list, and writes what the list then holds, in one step.

    The file is its owner's alone to read. One that is not there has no tenants. Raises ConfigError where it cannot be
    read or written, or another command is at it.
    """
    path = Path(os.path.realpath(path))
    scratch = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"keys file {path}: another command is changing it; try again, and where none runs remove {scratch}"
        ) from error
    except OSError as error:
        raise ConfigError(f"keys file {path}: cannot be written ({error.strerror}); give a writable folder") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            held = [read_tenants(path) if path.exists() else Tenants(tenants={})]
            yield held
            # Reading its own words back, so that nothing is written which a server would refuse.
            text = held[0].model_dump_json(indent=1, exclude_defaults=True)
            parse_tenants(path, text.encode())
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                with contextlib.suppress(PermissionError):  # only root can give a file to the server's user
                    os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
