"""How many operations one step of the embedded engine takes, with guards and without.

On a GPU each is launched by itself, so a small model's step costs what its operations are, whatever they compute. They
are counted on a CPU, by the code that runs on any other device: nothing is read off tensors to save work.
"""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead import DECODE, PREFILL, _started, ours
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and among them those that compute: views of a tensor do not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all = self.computing = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        aliases = [each.alias_info for each in func._schema.returns]
        self.computing += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


@asynccontextmanager
async def _counting(model: Path, artifacts: Sequence[Path], dtype: str) -> Any:
    """An engine whose steps are counted: by prompt tokens of a step, what it took."""
    options = {"model": str(model), "artifacts": artifacts, "dtype": dtype, "max_batch_tokens": 1024}
    engine = EmbeddedEngine(EmbeddedOptions.model_validate(options))
    async with _started(engine):
        attachment = engine._attachment
        assert attachment is not None, "the engine was started"
        attachment.books._looks = False
        processor, counts = engine._manager.batch_processor, []
        step = processor._generation_step

        def counted(*args: Any, **kwargs: Any) -> None:
            with Counted() as ops:
                step(*args, **kwargs)
            tokens = processor.inputs_and_outputs.num_q_tokens
            counts.append((tokens, ops.all, ops.computing))

        processor._generation_step = counted
        yield engine, counts


async def count_steps(model: Path, artifacts: Sequence[Path], dtype: str) -> dict[str, dict[str, int]]:
    """Operations of a step that decodes 8 sequences, and of one that computes 4 prompts of 256 tokens."""
    found = {}
    async with _counting(model, artifacts, dtype) as (engine, counts):
        ask = ours(engine, FinishReason.LENGTH)
        for load, tokens in ((DECODE, DECODE.prompts), (PREFILL, PREFILL.prompts * PREFILL.prompt_tokens)):
            await ask(load, 1)
            of_load = [each for each in counts if each[0] == tokens]
            found[load.name] = {"operations": of_load[-1][1], "computing": of_load[-1][2]}
    return found
