import pytest

from guards.core.verdict import GuardKind, GuardMode
from server.engines.scripted.scripts import guard
from server.errors import ConfigError
from server.policies import guard_modes

GUARDS = (guard("a"), guard("b"))


def test_guards_are_enforced_unless_named() -> None:
    assert guard_modes(GUARDS, ("b",)) == {"a": GuardMode.ENFORCE, "b": GuardMode.SHADOW}


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no guard named 'c'; known: a, b"):
        guard_modes(GUARDS, ("c",))


def test_intervention_cannot_only_watch() -> None:
    shifts = guard("n", kind=GuardKind.INTERVENTION)
    assert guard_modes((shifts,), ()) == {"n": GuardMode.ENFORCE}
    with pytest.raises(ConfigError, match="the keys file: guard 'n' changes activations"):
        guard_modes((*GUARDS, shifts), ("a", "n"), "the keys file")


def test_modes_cannot_be_changed_by_whoever_holds_them() -> None:
    with pytest.raises(TypeError):
        guard_modes(GUARDS, ())["a"] = GuardMode.SHADOW  # type: ignore[index]
