"""What guards read of their canaries in a pass of transformers, alone and without any engine.

In a process of its own: what it had of the device's memory is free again before an engine asks for its share.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context

from guards.core.verdict import Reading
from guards.inside.transformers.loading import load_model
from guards.methods.loaded import read_guards
from server.doctor.findings import reason
from server.doctor.properties import known
from server.engines.options import EmbeddedOptions, VllmOptions


async def read_plainly(options: EmbeddedOptions | VllmOptions) -> Mapping[str, Reading] | str:
    """Readings by a canary's name, or why there are none: a checkpoint may be one that only vLLM loads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, _readings, options)
        except BrokenExecutor:
            return "its process was ended, as the system does where memory runs out"


def _readings(options: EmbeddedOptions | VllmOptions) -> Mapping[str, Reading] | str:
    """In the other process, where no error may travel back that cannot be pickled."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = options.device if isinstance(options, EmbeddedOptions) else None
    try:
        guards = read_guards(options.artifacts)
        dtype = next(iter(guards.values())).artifact.manifest.model.dtype
        loaded = load_model(options.model, device, dtype)
        of, read = known(guards), dict[str, Reading]()
        for name, entry in guards.items():
            with loaded.reading(entry.method, entry.guard) as reader:
                read |= {each.name: reader(each.canary.token_ids)[0] for each in of if each.guard == name}
        return read
    except Exception as error:  # whatever it is, the report says it
        return reason(error)
