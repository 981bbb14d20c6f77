"""States on the embedded engine: in chunks, side by side, out of shared prefixes and past attention windows."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.inside.transformers.loading import load_model
from guards.methods.registry import SPANS
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.guards.samples import spans, write
from tests.guards.tiny import tiny_tokenizer
from tests.models import tiny_model, tokens

WINDOW = 8
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW},
}


def prompts() -> list[tuple[int, ...]]:
    """Of several lengths, half of them with one beginning of two pages of the cache."""
    shared = tuple(tokens(64, seed=7).tolist())
    alone = [tuple(tokens(length, seed=length).tolist()) for length in (3, 8, 21, 50)]
    return [*alone, *(shared + each for each in alone), shared]


@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_are_those_of_one_pass_over_the_prompt(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, seed=3, max_position_embeddings=256, **FAMILIES[kind])
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    loaded, guard = load_model(tmp_path / "model", "cpu", "float32"), spans(1, 2)
    write(tmp_path / "spans", SPANS, guard, model=loaded.identity)
    asked = prompts()
    with loaded.reading(SPANS, guard) as read:
        wanted = torch.tensor([read(ids)[1] for ids in asked])
    options = EmbeddedOptions(
        model=str(tmp_path / "model"), artifacts=(tmp_path / "spans",), max_batch_tokens=16, kv_cache_tokens=4096
    )

    async def main() -> list[list[tuple[float, ...]]]:
        engine = EmbeddedEngine(options)
        await engine.start()
        try:
            one = [(await engine.read(ids, f"one-{i}"))["spans"] for i, ids in enumerate(asked)]
            every = await asyncio.gather(*(engine.read(ids, f"all-{i}") for i, ids in enumerate(asked)))
            assert engine._attachment is not None
            rows = engine._attachment.books._states._rows
            assert rows < 4 * options.kv_cache_tokens, "of tokens, though two groups of layers may share the room"
        finally:
            await engine.stop()
        return [[scores for _, scores in found] for found in (one, [each["spans"] for each in every])]

    for got in asyncio.run(main()):
        torch.testing.assert_close(torch.tensor(got), wanted, rtol=1e-3, atol=1e-4)
