"""The embedded engine: guards that change activations."""

import asyncio
from pathlib import Path

import torch

from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.selective_pruning.guard import Importance, PruningGuard
from guards.model.sites import Site
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from tests.served import forget_prompt, retain_prompt, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, run, unguarded


def test_neuron_adjust_changes_answers_and_not_with_the_batch(served: Served) -> None:
    options = EmbeddedOptions(model=str(served[0]), artifacts=(served[2],))
    prompts = [forget_prompt(i) for i in range(8)]

    async def together(engine: EmbeddedEngine) -> list[Answer]:
        return list(await asyncio.gather(*(ask(engine, p, f"r{i}", max_tokens=16) for i, p in enumerate(prompts))))

    async def alone(engine: EmbeddedEngine) -> list[Answer]:
        return [await ask(engine, p, f"r{i}", max_tokens=16) for i, p in enumerate(prompts)]

    plain, adjusted, single = run(unguarded(served), together), run(options, together), run(options, alone)
    assert [a.text for a in plain] != [a.text for a in adjusted]
    assert [a.text for a in adjusted] == [a.text for a in single]
    assert all(moved(a, "na-tens") > 0 for a in adjusted)


def moved(answer: Answer, guard: str) -> float:
    """What the only intervention says that it did."""
    (acted,) = answer.finish.acted
    assert (acted.guard, acted.unit) == (guard, "neurons")
    return acted.amount


def mask_guard(loaded: LoadedModel) -> PruningGuard:
    """The first neurons of every layer but the one whose key vectors the cube of these tests scores."""
    layers = range(1, loaded.sites.layers)
    return PruningGuard(
        {layer: torch.arange(128) for layer in layers},
        {layer: torch.arange(4) for layer in layers},
        d_attention=loaded.sites.width(Site.ATTENTION),
        fraction=0.5,
        attention_fraction=0.25,
        steps=1,
        importance=Importance.ABS,
    )


def test_pruning_is_served_beside_a_detector_in_any_order(served: Served, tmp_path: Path) -> None:
    """Answers are those of a model without these columns, and the detector still abstains."""
    loaded = load_model(served[0], "cpu")
    guard = mask_guard(loaded)
    mask = write_guard(tmp_path / "sp-tens", loaded, guard)
    for place in guard.places:
        weight = loaded.sites.tap(place).module.get_parameter("weight")
        weight[:, guard.at(place.site)[place.layer]] = 0
    loaded.model.save_pretrained(tmp_path / "cut")
    loaded.codec.tokenizer.save_pretrained(tmp_path / "cut")

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        assert set((await engine.verify()).values()) <= {None}
        prompts = [kind(index) for kind in (forget_prompt, retain_prompt) for index in range(4)]
        return [await ask(engine, prompt, f"r{i}") for i, prompt in enumerate(prompts)]

    plain = run(EmbeddedOptions(model=str(served[0])), work)
    cut = run(EmbeddedOptions(model=str(tmp_path / "cut")), work)
    assert [a.text for a in cut] != [a.text for a in plain]  # positive control
    alone = run(EmbeddedOptions(model=str(served[0]), artifacts=(mask,)), work)
    assert [a.text for a in alone] == [a.text for a in cut]
    assert all(moved(a, "sp-tens") == 2 * 132 * a.finish.completion_tokens for a in alone)
    for artifacts in ((mask, served[1]), (served[1], mask)):
        both = run(EmbeddedOptions(model=str(served[0]), artifacts=artifacts), work)
        assert [a.finish.reason is FinishReason.ABSTAIN for a in both[:4]] == [True] * 4
        assert [a.text for a in both[4:]] == [a.text for a in alone[4:]]
