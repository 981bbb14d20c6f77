"""Each family on the embedded engine: a guard over spans reads what plain passes of whole prompts read."""

from pathlib import Path

import pytest

from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model
from guards.model.sites import Site
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.families import PROMPTS, TURNED, expected, span_guard
from tests.models import CONFIGS, EXPERTS, RECURRENT
from tests.served import save_tiny_model, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, ask, run, watching

SERVED = [
    *((kind, Site.KEY) for kind in CONFIGS if kind not in RECURRENT),
    *((kind, Site.RESIDUAL) for kind in EXPERTS if kind not in RECURRENT),
]


@pytest.mark.parametrize(("kind", "site"), SERVED)
def test_a_guard_reads_what_plain_passes_read(kind: str, site: Site, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", kind, template=TURNED, ffn_dim=256)  # as OPT names the width
    loaded = load_model(model, "cpu")
    guard = span_guard(loaded, site)
    artifact = write_guard(tmp_path / "tens", loaded, guard)

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        assert await engine.verify() == {"tens": None}
        return [await ask(engine, ids, f"r{i}", policy=watching(engine)) for i, ids in enumerate(PROMPTS)]

    answers = run(EmbeddedOptions(model=str(model), artifacts=(artifact,)), work)
    for answer, (reading, score) in zip(answers, expected(loaded, guard), strict=True):
        (found,) = answer.finish.prompt_scores
        assert found.reading == reading
        assert found.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_layers_that_keep_a_state_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", kind)

    async def work(_: EmbeddedEngine) -> None:
        raise AssertionError("it started")

    with pytest.raises(UnsupportedModelError, match=r"layers of type (conv|linear_attention), .* --engine vllm"):
        run(EmbeddedOptions(model=str(model)), work)
