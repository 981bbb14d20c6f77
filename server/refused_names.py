"""Names that no setting has: variables that somebody took for settings, and secrets in the file of settings."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from server.secret_names import is_secret

PREFIX, NESTED = "SKILLGUARD_", "__"
CONFIG_VARIABLE = "SKILLGUARD_CONFIG"
OTHER_VARIABLES = frozenset(
    {
        CONFIG_VARIABLE,
        *("SKILLGUARD_KEY", "SKILLGUARD_URL"),
        *("SKILLGUARD_DATA", "SKILLGUARD_TESTS_SPAWN", "SKILLGUARD_WITHOUT"),
        "SKILLGUARD_FAILURE_FILE",
    }
)
"""What begins alike and is no setting: the file's path, clients', tests', and what vLLM's workers are told."""

_SERVICE_LINK = re.compile(r"SKILLGUARD_(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT_LINK = re.compile(r"SKILLGUARD_(.+_)?PORT=[a-z]+://.*")
"""What Kubernetes sets in every pod for a Service whose name begins with skillguard, and that as NAME=VALUE."""


def stray_variables(known: Mapping[str, str], heads: Collection[str]) -> Iterator[str]:
    """Sentences about variables that are no settings. Values are not shown: one may be a secret.

    `known`: every setting's variable by its words. `heads`: first words, behind which the settings' models look.
    """
    for name, value in sorted(os.environ.items()):
        words = name.upper().removeprefix(PREFIX)
        if words == name.upper() or name in OTHER_VARIABLES or words.lower().partition(NESTED)[0] in heads:
            continue
        if _SERVICE_LINK.fullmatch(name) or _PORT_LINK.fullmatch(f"{name}={value}"):
            continue
        if is_secret(words):
            yield f"{name}: is no setting, and none takes a secret; `skillguard key add` makes keys. Unset it"
            continue
        plain = words.lower().replace(NESTED, "_")
        near = [known[each] for each in known if each == plain or each.endswith("_" + plain)]
        near = near or [known[each] for each in get_close_matches(plain, known, n=1)]
        meant = f"did you mean {' or '.join(near)}?" if near else "unset it, or name it otherwise"
        yield f"{name}: is no setting; {meant}"


def secrets_in(file: Path, tree: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what looks like a secret in a file."""
    for section, value in tree.items():
        below = value if isinstance(value, Mapping) else {}
        for key in [section, *(f"{section}.{name}" for name in below)]:
            if is_secret(key):
                yield (
                    f"{file}: {key}: is no setting, and no secret belongs in this file; remove it. Keys are made by "
                    "`skillguard key add`, which keeps their hashes in the file of --api-keys-file"
                )
        for flag in below.get("flags", ()) if isinstance(below.get("flags"), list) else ():
            if str(flag).startswith("-") and is_secret(name := str(flag).partition("=")[0]):
                yield f"{file}: {section}.flags: got {name}, and no secret belongs in this file; use the environment"
