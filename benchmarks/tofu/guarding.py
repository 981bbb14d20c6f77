"""The guards that are compared, each made by the command that users have, and left where it is there already."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.serving import ROOT

SKILL = "authors"
DETECTOR = "ksd"
STRENGTHS = ("2", "4")
"""Of LUNAR, of which one is chosen; 2 is the paper's."""
FLAGS: Mapping[str, Sequence[str]] = {
    **{f"lunar-{strength}": ("lunar", "--strength", strength) for strength in STRENGTHS},
    DETECTOR: ("ksd",),
}
"""Method and options by the guard's name."""
ALONE = ("--material", "none")
"""The shipped texts are left out: as in the papers, what is retained are the other authors, and nothing else."""
LONGEST = "256"
"""Tokens of the longest texts that a detector's calibration tries: no question here is longer."""


def calibrated(name: str, model: Path, forget: Path, retain: Path, folder: Path) -> Path:
    """The artifact of one of FLAGS, calibrated in chats unless it is there."""
    output = folder / name
    if not output.exists():
        method, *options = FLAGS[name]
        detecting = ["--longest", LONGEST, "--answers-file", str(folder / "answers.jsonl")] if name == DETECTOR else []
        sources = ["--forget", str(forget), "--retain", str(retain)]
        given = ["--model", str(model), "--skill", SKILL, *sources, "--frame", "chat", "--output", str(output)]
        command = [sys.executable, "-m", "server.cli", "calibrate", method, *given, *ALONE, *options, *detecting]
        subprocess.run(command, cwd=ROOT, check=True)
    return output
