"""What guards read of their canaries in a pass of transformers, alone and without any engine.

In a process of its own: what it had of the device's memory is free again before an engine asks for its share.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from guards.core.verdict import Reading
from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model
from guards.methods.loaded import read_guards
from server.doctor.findings import Finding, Outcome, reason
from server.doctor.properties import finding, known
from server.engines.options import EmbeddedOptions, VllmOptions


@dataclass(frozen=True)
class Unread:
    """Why there are no readings. `refutes`: unless the checkpoint is one that transformers does not load."""

    why: str
    refutes: bool


Plain = Mapping[str, Reading] | Unread
"""Readings by a canary's name."""


async def read_plainly(options: EmbeddedOptions | VllmOptions) -> Plain:
    """In the other process, to its end."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, _readings, options)
        except BrokenExecutor:
            return Unread("its process ended without a word, as it does where memory runs out", refutes=True)


def _readings(options: EmbeddedOptions | VllmOptions) -> Plain:
    """In the other process, where no error may travel back that cannot be pickled."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = options.device if isinstance(options, EmbeddedOptions) else None
    try:
        guards = read_guards(options.artifacts)
        dtype = next(iter(guards.values())).artifact.manifest.model.dtype
        try:
            loaded = load_model(options.model, device, dtype)
        except UnsupportedModelError as error:
            return Unread(reason(error), refutes=False)
        of, read = known(guards), dict[str, Reading]()
        for name, entry in guards.items():
            with loaded.reading(entry.method, entry.guard) as reader:
                read |= {each.name: reader(each.canary.token_ids)[0] for each in of if each.guard == name}
        return read
    except Exception as error:  # whatever it is, the report says it
        return Unread(reason(error), refutes=True)


def compared(before: Mapping[str, Reading], plain: Plain) -> Finding:
    """The engine's verdicts, against those of the plain pass."""
    name = "verdicts, against a plain pass"
    if isinstance(plain, Unread):
        outcome = Outcome.REFUTED if plain.refutes else Outcome.SKIPPED
        return Finding(name, outcome, f"not examined: {plain.why}")
    wrong = [
        f"{each} reads {before[each].name}, plainly {plain[each].name}" for each in plain if plain[each] != before[each]
    ]
    return finding(name, wrong, f"{len(plain)} prompts as in the engine")
