"""What a request may expect of each guard. A request carries its policy, and every judgement uses what it brought."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from guards.core.verdict import GuardMode, Scope
from guards.errors import PolicyError

LARGEST = 3.4028234663852886e38
"""The largest float32, in which scores and taus are compared."""


@dataclass(frozen=True)
class Rule:
    """How one guard judges. `taus` has one threshold for each of its parts, and none for an intervention.

    An artifact's own tau is the default rule. Raises PolicyError on a tau that is not finite in float32: a comparison
    with it would always come out the same way.
    """

    mode: GuardMode = GuardMode.ENFORCE
    scope: Scope = Scope.BOTH
    taus: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for tau in self.taus:
            if not abs(tau) <= LARGEST:
                raise PolicyError(f"got tau {tau!r}, wanted a number that is finite in float32")


@dataclass(frozen=True)
class Policy:
    """A rule for each guard by name. A guard that is not named here is under its default rule.

    `version` names the content: equal rules have equal versions.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Requests share a policy: nobody who holds one, or who made it, can change it."""
        object.__setattr__(self, "rules", MappingProxyType(dict(self.rules)))

    @cached_property
    def text(self) -> str:
        """For the way to another process; equal policies give equal texts."""
        # One text for 1 and 1.0, and for 0.0 and -0.0.
        taus = {name: [float(tau) + 0.0 for tau in rule.taus] for name, rule in self.rules.items()}
        rows = {name: [rule.mode, rule.scope, taus[name]] for name, rule in sorted(self.rules.items())}
        return json.dumps(rows, separators=(",", ":"), allow_nan=False)

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """What `text` gave. Raises PolicyError on anything else."""
        try:
            rows = json.loads(text)
            policy = cls(
                {
                    name: Rule(GuardMode(mode), Scope(scope), tuple(map(float, taus)))
                    for name, (mode, scope, taus) in rows.items()
                }
            )
            if policy.text != text:
                raise ValueError("it would be written otherwise")
            return policy
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PolicyError(f"got {text[:80]!r}, wanted a policy as `Policy.text` writes it ({error})") from error

    def over(self, defaults: Mapping[str, Rule]) -> "Policy":
        """A rule for exactly the guards of `defaults`: this policy's where it has one.

        Raises PolicyError for a guard that is not among them, and for a rule with another number of taus.
        """
        if unknown := sorted(self.rules.keys() - defaults.keys()):
            raise PolicyError(f"got a rule for guard {unknown[0]!r}, wanted one of {', '.join(sorted(defaults))}")
        for name, rule in self.rules.items():
            if len(rule.taus) != len(defaults[name].taus):
                raise PolicyError(
                    f"guard {name!r}: got {len(rule.taus)} tau(s), wanted one for each of its "
                    f"{len(defaults[name].taus)} part(s)"
                )
        if self.rules.keys() == defaults.keys():
            return self
        return Policy({name: self.rules.get(name, rule) for name, rule in defaults.items()})

    def in_mode(self, mode: GuardMode) -> "Policy":
        """The same rules, all in one mode."""
        return Policy({name: Rule(mode, rule.scope, rule.taus) for name, rule in self.rules.items()})
