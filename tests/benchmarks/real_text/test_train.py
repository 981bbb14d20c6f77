"""Training goes on where it stopped, and a built model is one that guards can be fitted on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.real_text.build import build
from benchmarks.real_text.heldout import ANSWERS
from benchmarks.real_text.train import Recipe, new_model, train
from guards.inside.transformers.loading import load_model
from tests.guards.tiny import tiny_tokenizer

TINY = Recipe(
    pieces=320, hidden=16, intermediate=24, layers=2, heads=2, steps=6, rows=2, tokens=16, warmup_steps=2, rate=1e-2
)


def rows_of_tokens(recipe: Recipe) -> torch.Tensor:
    return torch.randint(0, recipe.pieces, (recipe.steps * recipe.rows, recipe.tokens + 1), dtype=torch.int16)


def weights(recipe: Recipe, packed_RL: torch.Tensor, checkpoint: Path, minutes: float = 5) -> dict[str, torch.Tensor]:
    model = new_model(tiny_tokenizer(), recipe, 0)
    train(model, packed_RL, recipe, checkpoint, minutes)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_run_that_was_stopped_ends_at_the_same_weights(tmp_path: Path) -> None:
    packed_RL = rows_of_tokens(TINY)
    whole = weights(TINY, packed_RL, tmp_path / "whole.pt")
    # The fourth step of the stopped run meets a token that does not exist; a checkpoint lies behind every step.
    broken_RL = packed_RL.clone()
    broken_RL[3 * TINY.rows :] = TINY.pieces
    with pytest.raises(IndexError):
        weights(TINY, broken_RL, tmp_path / "stopped.pt", minutes=0)
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 3
    resumed = weights(TINY, packed_RL, tmp_path / "stopped.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    untrained = new_model(tiny_tokenizer(), TINY, 0).state_dict()
    assert not torch.equal(whole["model.embed_tokens.weight"], untrained["model.embed_tokens.weight"])


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    short = replace(TINY, steps=2)
    weights(short, rows_of_tokens(short), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="use another folder"):
        weights(TINY, rows_of_tokens(TINY), tmp_path / "checkpoint.pt")


def test_the_rate_rises_and_falls() -> None:
    rates = [Recipe().rate_at(step) for step in (0, 99, 100, 1150, 2199)]
    assert rates[0] == pytest.approx(Recipe().rate / 100)
    assert max(rates) == rates[1] == rates[2] == Recipe().rate
    assert rates[3] == pytest.approx((Recipe().rate + Recipe().last_rate) / 2)
    assert rates[4] == pytest.approx(Recipe().last_rate, rel=1e-3)


def test_a_model_is_built_whole(data: Path, tmp_path: Path) -> None:
    build(tmp_path / "model", data, replace(TINY, steps=2), 0)
    loaded = load_model(tmp_path / "model", "cpu")
    assert (loaded.identity.layers, loaded.identity.d_ff, loaded.max_tokens) == (2, 24, 1024)
    assert loaded.codec.has_chat_template
    found = json.loads((tmp_path / "model" / "heldout.json").read_text(encoding="utf-8"))
    assert list(found) == list(ANSWERS)
    assert all(row["perplexity"] > 1 for row in found.values())
