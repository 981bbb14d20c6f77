"""What a request brings: no threshold that decides nothing, one text for one content, and a rule for every guard."""

import json
import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Scope
from guards.errors import PolicyError

LARGEST = 3.4028234663852886e38
"""Of float32."""
TAUS = st.floats(-LARGEST, LARGEST, allow_nan=False)
RULES = st.builds(Rule, st.sampled_from(GuardMode), st.sampled_from(Scope), st.lists(TAUS, max_size=3).map(tuple))
POLICIES = st.dictionaries(st.text(), RULES, max_size=4).map(Policy)
DEFAULTS = {"a": Rule(taus=(1.0, 2.0)), "b": Rule(GuardMode.SHADOW, Scope.PROMPT, (3.0,)), "shift": Rule()}


@pytest.mark.parametrize(
    "tau", [math.nan, math.inf, -math.inf, math.nextafter(LARGEST, math.inf), -1e39, sys.float_info.max, 10**400]
)
@pytest.mark.parametrize("before", [(), (1.0,)])
def test_a_tau_that_decides_nothing_is_refused(tau: float, before: tuple[float, ...]) -> None:
    with pytest.raises(PolicyError, match="wanted a number that is finite in float32"):
        Rule(taus=(*before, tau))


@given(TAUS)
@example(LARGEST)
@example(-LARGEST)
@example(0.0)
@example(5e-324)
def test_any_other_tau_is_taken_as_it_is(tau: float) -> None:
    assert Rule(taus=(tau,)).taus == (tau,)


@given(POLICIES)
def test_a_text_gives_the_policy_back(policy: Policy) -> None:
    parsed = Policy.parse(policy.text)
    assert parsed == policy
    assert parsed.text == policy.text
    assert parsed.text.isascii()
    for name, rule in parsed.rules.items():
        assert isinstance(rule.mode, GuardMode)
        assert isinstance(rule.scope, Scope)
        assert rule.taus == policy.rules[name].taus


@given(POLICIES, POLICIES)
def test_versions_are_equal_where_contents_are(first: Policy, second: Policy) -> None:
    assert (first.version == second.version) is (first == second)
    again = Policy(dict(reversed(list(first.rules.items()))))
    assert (again, again.text, again.version) == (first, first.text, first.version)


@given(POLICIES, st.data())
def test_any_change_of_a_rule_is_another_version(policy: Policy, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*sorted(policy.rules), "another"]))
    rule = data.draw(RULES)
    changed = Policy({**policy.rules, name: rule})
    assert (changed.version == policy.version) is (policy.rules.get(name) == rule)


@pytest.mark.parametrize(("one", "same"), [((1,), (1.0,)), ((0.0,), (-0.0,))])
def test_numbers_that_are_equal_are_one_content(one: tuple[float, ...], same: tuple[float, ...]) -> None:
    policies = [Policy({"a": Rule(taus=taus)}) for taus in (one, same)]
    assert policies[0] == policies[1]
    assert policies[0].version == policies[1].version


def test_a_version_is_twelve_digits_that_stay_what_they_are() -> None:
    """A recorded one must be found again by a later release."""
    assert (
        Policy(DEFAULTS).text
        == '{"a":["enforce","both",[1.0,2.0]],"b":["shadow","prompt",[3.0]],"shift":["enforce","both",[]]}'
    )
    assert Policy(DEFAULTS).version == "fe5dca92d5aa"
    assert Policy().text == "{}"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "1", '"a"', "[" * 100_000, "{} ", "\x00"),
        '{"a":null}',
        '{"a":["enforce","both"]}',
        '{"a":["enforce","both",[1.0],1]}',
        '{"a":["observe","both",[1.0]]}',
        '{"a":["enforce","everywhere",[1.0]]}',
        '{"a":["enforce","both",1.0]}',
        '{"a":["enforce","both",null]}',
        '{"a":["enforce","both",[null]]}',
        '{"a":["enforce","both",["x"]]}',
        '{"a":["enforce","both",[NaN]]}',
        '{"a":["enforce","both",[Infinity]]}',
        '{"a":["enforce","both",[1e39]]}',
        '{"a":["enforce","both",[1' + "0" * 400 + "]]}",
        '{"a":["enforce","both",[1' + "0" * 5000 + "]]}",
        '{"a":["enforce","both",["1.0"]]}',
        '{"a":["enforce","both","12"]}',
        '{"a":["enforce","both",[true]]}',
        '{"a":{"enforce":1,"both":2,"":3}}',
        '{"a":["enforce","both",[1.0]],"a":["shadow","both",[1.0]]}',
    ],
    ids=range(28),
)
def test_what_no_policy_wrote_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        Policy.parse(text)


VALUES = st.recursive(
    st.sampled_from([*GuardMode, *Scope, "a", "", 1.0, 1, True, None]) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)
ALMOST = st.dictionaries(
    st.text(max_size=2), st.tuples(st.sampled_from(GuardMode) | VALUES, st.sampled_from(Scope) | VALUES, VALUES)
)


@given(st.text() | (VALUES | ALMOST).map(lambda value: json.dumps(value, separators=(",", ":"))))
def test_any_text_is_a_policy_as_written_or_an_error(text: str) -> None:
    try:
        policy = Policy.parse(text)
    except PolicyError:
        return
    assert policy.text == text


def test_over_gives_a_rule_for_every_guard() -> None:
    loose = Rule(GuardMode.SHADOW, Scope.GENERATION, (9.0, 8.0))
    found = Policy({"a": loose}).over(DEFAULTS)
    assert found.rules == {**DEFAULTS, "a": loose}
    assert list(found.rules) == list(DEFAULTS)
    assert Policy().over(DEFAULTS) == Policy(DEFAULTS)
    assert found.over(DEFAULTS) == found
    assert Policy().over({}) == Policy()


@given(st.dictionaries(st.sampled_from(sorted(DEFAULTS)), RULES))
def test_over_takes_what_fits_and_refuses_the_rest(rules: dict[str, Rule]) -> None:
    wrong = [name for name, rule in rules.items() if len(rule.taus) != len(DEFAULTS[name].taus)]
    if wrong:
        with pytest.raises(PolicyError, match=r"got \d tau\(s\), wanted one for each of its \d part\(s\)"):
            Policy(rules).over(DEFAULTS)
    else:
        assert Policy(rules).over(DEFAULTS).rules == {**DEFAULTS, **rules}


def test_an_unknown_guard_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="got a rule for guard 'c', wanted one of a, b, shift"):
        Policy({"a": DEFAULTS["a"], "c": Rule()}).over(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "taus", "says"),
    [
        ("a", (1.0,), "guard 'a': got 1 tau\\(s\\), wanted one for each of its 2"),
        ("a", (), "guard 'a': got 0 tau"),
        ("b", (1.0, 2.0), "guard 'b': got 2 tau"),
        ("shift", (1.0,), "guard 'shift': got 1 tau\\(s\\), wanted one for each of its 0"),
    ],
)
def test_another_number_of_taus_is_refused(name: str, taus: tuple[float, ...], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Policy({name: Rule(taus=taus)}).over(DEFAULTS)


@given(POLICIES, st.sampled_from(GuardMode))
def test_in_mode_changes_nothing_but_the_mode(policy: Policy, mode: GuardMode) -> None:
    changed = policy.in_mode(mode)
    assert changed.rules == {name: Rule(mode, rule.scope, rule.taus) for name, rule in policy.rules.items()}
    assert changed.in_mode(mode) == changed


def test_a_policy_does_not_change() -> None:
    rules = {"a": Rule(taus=(0.5,))}
    policy = Policy(rules)
    rules["a"] = Rule()
    assert policy.rules == {"a": Rule(taus=(0.5,))}
    with pytest.raises(TypeError):
        policy.rules["a"] = Rule()  # type: ignore[index]
