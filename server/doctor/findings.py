"""What was examined and what came of it, as text and as JSON. No prompt, no path, no variable of the machine's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import PurePath
from traceback import extract_tb

from guards.core.version import version
from guards.errors import SkillguardError

HANGS = "the engine's end"
"""The finding about an engine that does not stop."""


class Outcome(StrEnum):
    """What an examination gave."""

    PROVED = "proved"
    REFUTED = "refuted"
    TOLD = "told"
    """A fact, which proves and refutes nothing."""
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One property of the engine, or one fact about the machine."""

    name: str
    outcome: Outcome
    detail: str


def reason(error: Exception) -> str:
    """What an error says, and of one that is none of ours its class and where it was raised too."""
    frames = extract_tb(error.__traceback__)
    if isinstance(error, SkillguardError) or not frames:
        return str(error)
    return f"{type(error).__name__} in {PurePath(frames[-1].filename).name}, line {frames[-1].lineno}: {error}"


@dataclass(frozen=True)
class Report:
    """All findings of one run."""

    engine: str
    findings: Sequence[Finding]

    @property
    def hangs(self) -> bool:
        """Whether the engine did not stop, so that the process that ran it does not end by itself."""
        return any(finding.name == HANGS for finding in self.findings)

    @property
    def sound(self) -> bool:
        """Whether something was proved and nothing refuted."""
        outcomes = [finding.outcome for finding in self.findings]
        return Outcome.PROVED in outcomes and Outcome.REFUTED not in outcomes

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        findings = [asdict(finding) for finding in self.findings]
        return {"skillguard": version(), "engine": self.engine, "sound": self.sound, "findings": findings}

    def text(self) -> str:
        """A line for each finding, and the verdict."""
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{of.outcome.value:8} {of.name:{width}}  {of.detail}" for of in self.findings]
        refuted = sum(of.outcome is Outcome.REFUTED for of in self.findings)
        verdict = "sound: nothing that was examined is refuted" if self.sound else f"NOT SOUND: {refuted} refuted"
        return "\n".join([*lines, verdict])
