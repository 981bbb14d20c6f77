from dataclasses import replace

import pytest

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode, Scope
from server.engines.scripted.scripts import guard
from server.errors import ConfigError
from server.policies import default_policy, require_shadowable, shadowed

LATE = Rule(scope=Scope.GENERATION, taus=(0.25,))
GUARDS = (guard("a"), replace(guard("b"), rule=LATE))


def test_guards_are_enforced_under_their_own_rules_unless_named() -> None:
    policy = default_policy(GUARDS)
    assert policy == Policy({"a": Rule(GuardMode.ENFORCE, Scope.BOTH, (0.5,)), "b": LATE})
    assert shadowed(policy, ("b",)).rules == {"a": policy.rules["a"], "b": replace(LATE, mode=GuardMode.SHADOW)}
    assert shadowed(policy, ()) == policy


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"shadow: no guard named 'c'; known: a, b"):
        require_shadowable(GUARDS, ("c",), "shadow")


def test_intervention_cannot_only_watch() -> None:
    shifts = guard("n", kind=GuardKind.INTERVENTION)
    assert default_policy((shifts,)).rules == {"n": Rule(GuardMode.ENFORCE)}
    require_shadowable((*GUARDS, shifts), ("a", "b"), "the keys file")
    with pytest.raises(ConfigError, match="the keys file: guard 'n' changes activations"):
        require_shadowable((*GUARDS, shifts), ("a", "n"), "the keys file")


def test_a_policy_cannot_be_changed_by_whoever_holds_it() -> None:
    policy = default_policy(GUARDS)
    with pytest.raises(TypeError):
        policy.rules["a"] = replace(policy.rules["a"], mode=GuardMode.SHADOW)  # type: ignore[index]


def test_nor_by_whoever_made_it() -> None:
    rules = {"a": Rule(taus=(0.5,))}
    policy = Policy(rules)
    rules["a"] = Rule(GuardMode.SHADOW, taus=(9.0,))
    assert policy.rules == {"a": Rule(taus=(0.5,))}
