"""What a suite's outcomes come to."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

PASSED, FAILED, NOT_APPLICABLE, SKIPPED = "passed", "failed", "not applicable", "skipped"


@dataclass(frozen=True)
class Exempt:
    """Tests that fail for a reason that is none of ours. `tests`: patterns of their names, as in a shell."""

    reason: str
    tests: tuple[str, ...]

    def covers(self, test: str) -> bool:
        """Whether a test is one of them."""
        return any(fnmatchcase(test, pattern) for pattern in self.tests)


def judge(lines: str, exempt: Iterable[Exempt], model: str) -> dict[str, Any]:
    """Counts, the tests that fail, and those that do not apply, by reason.

    A test that passes has passed, whoever exempts it.
    """
    exemptions, failed = tuple(exempt), []
    counts = dict.fromkeys((PASSED, FAILED, NOT_APPLICABLE, SKIPPED), 0)
    reasons: dict[str, list[str]] = {one.reason: [] for one in exemptions}
    for line in map(json.loads, lines.splitlines()):
        test, outcome = line["test"].replace(model, "MODEL"), line["outcome"]
        covering = next((one for one in exemptions if one.covers(test)), None)
        if outcome == FAILED and covering is not None:
            outcome = NOT_APPLICABLE
            reasons[covering.reason].append(test)
        elif outcome == FAILED:
            failed.append({"test": test, "said": line["said"].replace(model, "MODEL")})
        counts[outcome] += 1
    applied = {
        reason: {"count": len(tests), "tests": sorted({test.partition("[")[0] for test in tests})}
        for reason, tests in reasons.items()
        if tests
    }
    return {**counts, "failures": failed, "reasons": applied}
