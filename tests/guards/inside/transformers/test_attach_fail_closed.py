"""What is broken reads MISSING, INVALID or raises; never OUTSIDE."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.contract.guard import Guard
from guards.core.verdict import Reading
from guards.errors import GuardReadingError
from guards.inside.transformers.sites import find_sites
from guards.model.sites import Place, Site
from tests.guards.attached import KINDS, LENGTH, attach, fitted, read, take
from tests.guards.samples import cube, cubes, neuron_adjust
from tests.models import LAYERS, tiny_model, tokens


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_weight_is_invalid(kind: str, bad: float) -> None:
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    guards: dict[str, Guard] = {"sums": fitted(model, ids), "shift": neuron_adjust()}
    sites = find_sites(model)
    matrix = sites.tap(Place(0, Site.PRE_ACTIVATION)).module.weight
    assert isinstance(matrix, Tensor)
    matrix[:] = bad
    with attach(model, **guards) as attachment:
        codes = read(model, attachment, ids).codes_RG
    assert bool((codes == Reading.INVALID).all())


def test_one_broken_neuron_of_one_token_is_invalid_there() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    guard = fitted(model, ids)

    def break_one(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        key = args[0].clone()
        key[0, 3, 11] = torch.nan
        return (key,)

    find_sites(model).tap(Place(LAYERS - 1, Site.KEY)).module.register_forward_pre_hook(break_one)
    with attach(model, sums=guard) as attachment:
        codes = read(model, attachment, ids).codes_RG[:, 0]
    assert codes.tolist() == [Reading.INVALID if row == 3 else Reading.INSIDE for row in range(LENGTH)]


def test_an_invalid_cube_is_not_outvoted() -> None:
    """Inside one cube and not a number in another: the reading is INVALID."""
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    (good,) = fitted(model, ids).cubes
    broken = cube(0)
    broken.mean_F[0] = torch.nan
    with attach(model, sums=cubes(good, broken)) as attachment:
        assert bool((read(model, attachment, ids).codes_RG == Reading.INVALID).all())


@pytest.mark.parametrize("layer", [0, 2])
def test_a_hook_that_did_not_fire_is_missing(layer: int) -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    sites = find_sites(model)
    with attach(model, sums=cubes(cube(0), cube(2)), shift=neuron_adjust()) as attachment:
        sites.tap(Place(layer, Site.KEY)).module._forward_pre_hooks.clear()
        sites.tap(Place(layer, Site.PRE_ACTIVATION)).module._forward_hooks.clear()
        readings = read(model, attachment, ids)
    assert bool((readings.codes_RG == Reading.MISSING).all())
    assert not bool(torch.isfinite(readings.scores["sums"]).any())


def test_a_projection_called_around_its_hooks_is_missing() -> None:
    """As a fused kernel would that reads the weight and never calls the module."""
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    block = model.model.layers[2].mlp

    def fused(x: Tensor) -> Tensor:
        return nn.functional.linear(block.act_fn(block.gate_proj(x)) * block.up_proj(x), block.down_proj.weight)

    with attach(model, sums=cubes()) as attachment:
        block.forward = fused
        assert bool((read(model, attachment, ids).codes_RG == Reading.MISSING).all())


def test_a_replaced_projection_is_missing() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, sums=cubes()) as attachment:
        old = model.model.layers[2].mlp.down_proj
        model.model.layers[2].mlp.down_proj = nn.Linear(old.in_features, old.out_features, bias=False)
        assert bool((read(model, attachment, ids).codes_RG == Reading.MISSING).all())


def test_too_few_rows_are_missing() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, sums=cubes(), shift=neuron_adjust()) as attachment:
        model(input_ids=ids)
        assert bool((take(attachment, LENGTH + 1).codes_RG == Reading.MISSING).all())


def test_taking_without_a_forward_pass_raises() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, sums=cubes()) as attachment:
        with pytest.raises(GuardReadingError, match="no guarded forward pass"):
            take(attachment, 1)
        read(model, attachment, ids)
        with pytest.raises(GuardReadingError, match="no guarded forward pass"):
            take(attachment, 1)


def test_a_layer_run_twice_raises() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    block = model.model.layers[2].mlp
    once = block.forward
    block.forward = lambda x: once(x) + once(x)
    with attach(model, sums=cubes()), pytest.raises(GuardReadingError, match="layer 2 ran twice"):
        model(input_ids=ids)


def test_a_block_run_outside_the_model_raises() -> None:
    model = tiny_model("llama")
    with attach(model, sums=cubes()), pytest.raises(GuardReadingError, match="outside a forward pass"):
        model.model.layers[2].mlp(torch.randn(1, 2, 16))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input_ids": tokens(2, 4), "logits_to_keep": torch.tensor([1])}, "wanted a packed batch of 1"),
        ({"inputs_embeds": torch.zeros(1, 4, 16)}, "without input_ids"),
    ],
)
def test_rows_that_cannot_be_told_raise(arguments: dict[str, Any], complaint: str) -> None:
    model = tiny_model("llama")
    with attach(model, sums=cubes()), pytest.raises(GuardReadingError, match=complaint):
        model(**arguments)


def test_a_pass_that_died_half_way_is_forgotten() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)

    def die(_: nn.Module, __: Any) -> None:
        raise RuntimeError("out of memory")

    with attach(model, low=cubes(cube(0)), high=cubes()) as attachment:
        wanted = read(model, attachment, ids).codes_RG
        handle = find_sites(model).tap(Place(1, Site.KEY)).module.register_forward_pre_hook(die)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(input_ids=ids)
        assert bool((take(attachment, LENGTH).codes_RG[:, 1] == Reading.MISSING).all())
        handle.remove()
        assert torch.equal(read(model, attachment, ids).codes_RG, wanted)
