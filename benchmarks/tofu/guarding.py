"""The guards that are compared, each made by the command that users have, and left where it is there already."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.serving import ROOT

SKILL = "authors"
LUNAR: Mapping[str, Sequence[str]] = {
    f"lunar-{strength}": ("lunar", "--strength", strength) for strength in ("1", "2", "4")
}
"""Of which one is chosen; 2 is the paper's strength."""
DETECTORS: Mapping[str, Sequence[str]] = {
    f"ksd-{cap}": ("ksd", "--max-false-abstention", cap) for cap in ("0.005", "0.05")
}
"""Of which one is chosen: shares of what is retained that may be refused, the default and a looser one."""

ALONE = ("--material", "none")
"""The shipped texts are left out: as in the papers, what is retained are the other authors, and nothing else."""
LONGEST = "256"
"""Tokens of the longest texts that a detector's calibration tries: no question here is longer."""


def calibrated(name: str, flags: Sequence[str], model: Path, forget: Path, retain: Path, folder: Path) -> Path:
    """The artifact of a row of the tables above, calibrated in chats unless it is there."""
    output = folder / name
    if not output.exists():
        method, *options = flags
        detecting = ["--longest", LONGEST, "--answers-file", str(folder / "answers.jsonl")] if method == "ksd" else []
        sources = ["--forget", str(forget), "--retain", str(retain)]
        given = ["--model", str(model), "--skill", SKILL, *sources, "--frame", "chat", "--output", str(output)]
        command = [sys.executable, "-m", "server.cli", "calibrate", method, *given, *ALONE, *options, *detecting]
        subprocess.run(command, cwd=ROOT, check=True)
    return output
