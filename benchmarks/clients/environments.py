"""Where a client runs: here, if what it needs is installed and fits together, or in an environment of its own."""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from sysconfig import get_path

from packaging.requirements import Requirement

from benchmarks.clients.registry import Client

TIMEOUT_SECONDS = 1800


class NoEnvironmentError(RuntimeError):
    """pip could not install a client; the message holds the end of what it said."""


def unsatisfied(requirements: Iterable[str]) -> list[str]:
    """Requirements, and those of their packages, that this environment does not fulfil."""
    found: list[str] = []
    for text in requirements:
        wanted = Requirement(text)
        if not _installed(wanted):
            found.append(text)
            continue
        asked = [Requirement(line) for line in metadata.requires(wanted.name) or ()]
        found += [
            f"{wanted.name} needs {need}" for need in asked if _applies(need, wanted.extras) and not _installed(need)
        ]
    return found


def _installed(wanted: Requirement) -> bool:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True)


def _applies(need: Requirement, extras: Iterable[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def python_for(client: Client, work: Path) -> Path:
    """The interpreter that has a client's packages. An environment that was made before is used again.

    Raises NoEnvironmentError.
    """
    if not unsatisfied(client.requires):
        return Path(sys.executable)
    packages = "+".join(sorted(client.requires))
    folder = work / "environments" / re.sub(r"\W+", "-", client.requires[0]).strip("-")
    python, made = folder / "bin" / "python", folder / "made"
    if made.exists() and made.read_text(encoding="utf-8") == packages:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    if client.layered:
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "below.pth").write_text(get_path("purelib") + "\n", encoding="utf-8")
    _run([str(python), "-m", "pip", "install", "--quiet", *client.requires])
    made.write_text(packages, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoEnvironmentError(f"{' '.join(command[1:4])} took more than {TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        raise NoEnvironmentError(f"{' '.join(command[1:4])}: {done.stderr.strip()[-500:]}")
