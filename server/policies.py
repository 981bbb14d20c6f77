"""Which guards are enforced and which only watch.

The operator decides: for all callers, and in the keys file for the holder of one key. A request holds no field for it:
a caller who could switch a guard to `shadow` could switch it off.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from guards.core.policy import Policy
from guards.core.verdict import GuardKind, GuardMode
from server.engines.base import GuardInfo
from server.errors import ConfigError


def default_policy(guards: Sequence[GuardInfo]) -> Policy:
    """Each guard under its own rule: that of its artifact, enforced."""
    return Policy({guard.name: guard.rule for guard in guards})


def shadowed(policy: Policy, shadow: Collection[str]) -> Policy:
    """The same policy where these guards only watch."""
    return Policy(
        {name: replace(rule, mode=GuardMode.SHADOW) if name in shadow else rule for name, rule in policy.rules.items()}
    )


def require_shadowable(guards: Sequence[GuardInfo], shadow: Collection[str], where: str) -> None:
    """Raises ConfigError where a guard cannot be told to watch; `where` says which setting is wrong.

    A name the engine does not have is an error: a typing mistake there would enforce a guard that was meant to watch.
    So is an intervention, which has no hits to count and acts in every mode.
    """
    names = [guard.name for guard in guards]
    if unknown := sorted(set(shadow) - set(names)):
        raise ConfigError(
            f"{where}: no guard named {', '.join(map(repr, unknown))}; known: {', '.join(names) or 'none'}. "
            "Correct the name, or load the artifact"
        )
    if acting := [guard.name for guard in guards if guard.name in shadow and guard.kind is GuardKind.INTERVENTION]:
        raise ConfigError(
            f"{where}: guard {acting[0]!r} changes activations and cannot only watch; "
            "leave it out here, or do not load its artifact"
        )
