"""What a calibration reads where its passes alternate with plain ones, and how these are summed up."""

import pytest
import torch
from torch import Tensor

from benchmarks.calibration import AS_DEEP, PREFILL, READ, Beside, Block, steps_of, summarise
from guards.calibration.activations import Pass, Tokens
from guards.model.sites import Site
from tests.guards.tiny import tiny_loaded
from tests.models import tokens

EXAMPLES = [tuple(tokens(n, seed=n).tolist()) for n in (5, 1, 9, 3, 4, 12, 2)]


def test_every_token_is_read_once_between_plain_passes() -> None:
    loaded = tiny_loaded("llama")
    beside = Beside(loaded.model, loaded.codec, loaded.sites, loaded.identity, every=2)
    read: dict[str, dict[tuple[int, int], Tensor]] = {"itself": {}, "beside": {}}
    for name, model in (("itself", loaded), ("beside", beside)):

        def consume(layer: int, x_TF: Tensor, example_T: Tensor, name: str = name) -> None:
            for example in dict.fromkeys(example_T.tolist()):
                assert (layer, example) not in read[name], "read before"
                read[name][layer, example] = x_TF[example_T == example].clone()

        model.stream(Pass(Site.KEY, (0, 1), Tokens.ALL, batch_tokens=6), EXAMPLES, consume)
    assert read["itself"].keys() == read["beside"].keys() == {(layer, e) for layer in (0, 1) for e in range(7)}
    assert all(torch.equal(read["beside"][key], x_TF) for key, x_TF in read["itself"].items())
    every, read_only = {READ, PREFILL, AS_DEEP}, {READ}
    assert [set(block.seconds) for block in beside.blocks] == [every, read_only, every]
    assert sum(block.tokens for block in beside.blocks) == sum(map(len, EXAMPLES))


def test_ratios_are_of_blocks_that_went_through_the_model_in_every_way() -> None:
    blocks = [
        Block(0, 100, 120, {READ: 2.0, PREFILL: 3.0, AS_DEEP: 1.0}),
        Block(0, 900, 900, {READ: 9.0}),
        Block(1, 100, 100, {READ: 2.0, PREFILL: 1.0, AS_DEEP: 2.0}),
    ]
    prefill, as_deep = summarise(blocks)
    assert (prefill["against"], prefill["ratio"], prefill["tokens"]) == (PREFILL, 1.0, 200)
    assert (as_deep["ratio"], as_deep["low"], as_deep["high"]) == (0.75, 0.5, 1.0), "medians"
    assert prefill["plain_tokens_per_second"] == pytest.approx(50)
    assert steps_of({"encode": 1.0, "fit": 16.0, "read": 6.0}, blocks) == {"encode": 1.0, "fit": 12.0, "read": 3.0}
