"""Which guards are enforced, which only watch, and under which taus.

The operator decides: for all callers, and in the keys file for a tenant's. A request holds no field for it: a caller
who could switch a guard to `shadow` could switch it off.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode
from server.auth import TenantPolicy
from server.engines.base import GuardInfo
from server.errors import ConfigError
from server.tenants import Tenants


class Judged(Protocol):
    """What settings are checked against: a running guard, or an artifact that was only read."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> GuardKind: ...

    @property
    def rule(self) -> Rule: ...


def default_policy(guards: Sequence[GuardInfo]) -> Policy:
    """Each guard under its own rule: that of its artifact, enforced."""
    return Policy({guard.name: guard.rule for guard in guards})


def shadowed(policy: Policy, shadow: Collection[str]) -> Policy:
    """The same policy where these guards only watch."""
    return Policy(
        {name: replace(rule, mode=GuardMode.SHADOW) if name in shadow else rule for name, rule in policy.rules.items()}
    )


def tenant_policy(policy: Policy, tenant: TenantPolicy) -> Policy:
    """The server's policy with a tenant's settings over it, whose names were checked."""
    if not tenant.guards:
        return policy
    rules = dict(policy.rules)
    for name, setting in tenant.guards.items():
        rule = rules[name]
        mode = rule.mode if setting.mode is None else setting.mode
        rules[name] = replace(rule, mode=mode, taus=tuple(tau * setting.tau_factor for tau in rule.taus))
    return Policy(rules)


def require_tenants(guards: Sequence[Judged], tenants: Tenants) -> None:
    """Raises ConfigError where a tenant's settings do not fit these guards."""
    for name, tenant in tenants.tenants.items():
        where = f"keys file: guards of tenant {name!r}"
        require_known(guards, tenant.guards, where)
        modes = {guard: setting.mode for guard, setting in tenant.guards.items()}
        require_shadowable(guards, [each for each in modes if modes[each] is GuardMode.SHADOW], where)
        for guard in guards:
            setting = tenant.guards.get(guard.name)
            if setting is None or setting.tau_factor == 1:
                continue
            if not guard.rule.taus or min(guard.rule.taus) <= 0:
                raise ConfigError(
                    f"{where}: guard {guard.name!r} has no tau above 0, so none that a factor moves the right way; "
                    "leave its tau_factor out"
                )


def require_shadowable(guards: Sequence[Judged], shadow: Collection[str], where: str) -> None:
    """Raises ConfigError where a guard cannot be told to watch; `where` says which setting is wrong.

    A name the engine does not have is an error: a typing mistake there would enforce a guard that was meant to watch.
    So is an intervention, which has no hits to count: it acts, or it is off.
    """
    require_known(guards, shadow, where)
    if acting := [guard.name for guard in guards if guard.name in shadow and guard.kind is GuardKind.INTERVENTION]:
        raise ConfigError(
            f"{where}: guard {acting[0]!r} changes activations and cannot only watch; "
            "leave it out here, or switch it off"
        )


def require_known(guards: Sequence[Judged], named: Collection[str], where: str) -> None:
    """Raises ConfigError where a setting names a guard that is not there; `where` says which setting."""
    names = [guard.name for guard in guards]
    if unknown := sorted(set(named) - set(names)):
        raise ConfigError(
            f"{where}: no guard named {', '.join(map(repr, unknown))}; known: {', '.join(names) or 'none'}. "
            "Correct the name, or load the artifact"
        )
