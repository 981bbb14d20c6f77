"""Pruning on a live model: it is a zeroed column of the weight, it comes before detectors, and it hides nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.contract.guard import Guard
from guards.core.verdict import Reading
from guards.errors import AttachError
from guards.inside.transformers.sites import find_sites
from guards.methods.cube.guard import cube_score
from guards.model.sites import Place, Site
from tests.guards.attached import KINDS, LENGTH, attach, entry, fitted, hooks, keys, read, take
from tests.guards.model.test_sites import weight
from tests.guards.samples import cube, cubes, neuron_adjust, pruned
from tests.models import D_FF, D_MODEL, RECURRENT, tiny_model, tokens

ATTENDING = [kind for kind in KINDS if kind not in RECURRENT]
"""Families with attention in every layer, which the sample guard prunes."""


def zero_columns(model: nn.Module) -> None:
    """The sample guard's neurons, taken out of the weights that multiply them."""
    guard, sites = pruned(), find_sites(model)
    for place in guard.places:
        weight(sites.tap(place).module)[:, guard.at(place.site)[place.layer]] = 0


@pytest.mark.parametrize("kind", ATTENDING)
def test_it_equals_zeroed_columns_of_the_weights(kind: str) -> None:
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    plain = model(input_ids=ids).logits
    with attach(model, mask=pruned()) as attachment:
        masked = model(input_ids=ids).logits
        take(attachment, 2 * LENGTH)
        cache, steps = None, []  # one token at a time too
        for step in range(LENGTH):
            output = model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    assert torch.equal(model(input_ids=ids).logits, plain), "the guard is off again"
    zero_columns(model)
    by_hand = model(input_ids=ids).logits
    torch.testing.assert_close(masked, by_hand)
    torch.testing.assert_close(torch.cat(steps, dim=1), by_hand, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(masked, plain, atol=1e-3)  # positive control


@pytest.mark.parametrize("kind", ATTENDING)
def test_the_count_is_of_pruned_neurons_that_were_not_zero(kind: str) -> None:
    model, ids, guard = tiny_model(kind), tokens(2, LENGTH), pruned()
    sites = find_sites(model)
    counts: list[Tensor] = []
    for place in guard.places:  # before the guard's own hooks, so that these see the values it gets
        pruned_S = guard.at(place.site)[place.layer]

        def count(_: nn.Module, args: tuple[Any, ...], pruned_S: Tensor = pruned_S) -> None:
            counts.append((args[0].reshape(2 * LENGTH, -1)[:, pruned_S] != 0).sum(dim=1))

        sites.tap(place).module.register_forward_pre_hook(count)
    with attach(model, mask=guard) as attachment:
        readings = read(model, attachment, ids)
    assert torch.equal(readings.scores["mask"][:, 0], torch.stack(counts).sum(dim=0).float())
    assert bool((readings.codes_RG == Reading.OUTSIDE).all())
    if kind == "opt":  # whose key vectors have zeros of their own
        assert len(set(readings.scores["mask"].flatten().tolist())) > 1
    else:
        assert readings.scores["mask"].flatten().tolist() == [8] * 2 * LENGTH


@pytest.mark.parametrize("order", [("mask", "sums"), ("sums", "mask")])
def test_a_detector_scores_the_key_as_it_is_pruned(order: tuple[str, str]) -> None:
    model, ids = tiny_model("llama"), tokens(2, LENGTH)
    (place,) = [place for place in pruned().places if place == (2, Site.KEY)]
    each = cube(place.layer)
    unpruned = cube_score(keys(model, ids, place.layer), each.mean_F, 1 / each.std_F)
    guards: dict[str, Guard] = {"mask": pruned(), "sums": cubes(each)}
    with attach(model, **{name: guards[name] for name in order}) as attachment:
        readings = read(model, attachment, ids)
        key_TF = keys(model, ids, place.layer)  # by a younger hook
    assert readings.names == order
    assert bool((key_TF[:, pruned().feed_forward[2]] == 0).all())
    assert torch.equal(readings.scores["sums"][:, 0], cube_score(key_TF, each.mean_F, 1 / each.std_F))
    assert not torch.allclose(readings.scores["sums"][:, 0], unpruned)


def test_beside_neuron_adjust_both_act() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, shift=neuron_adjust(), mask=pruned()) as attachment:
        key_TF = keys(model, ids, 0)
        take(attachment, LENGTH)
        readings = read(model, attachment, ids)
    assert bool((key_TF[:, [1, 5, 9]] == 0).all())
    assert bool((readings.scores["shift"] > 0).any())
    assert readings.scores["mask"].flatten().tolist() == [8] * LENGTH


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("site", [Site.KEY, Site.ATTENTION])
def test_one_broken_value_of_one_token_is_invalid_there(site: Site, bad: float) -> None:
    """Though its zero keeps the model's output finite."""
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    layer, neuron = (2, 0) if site is Site.KEY else (1, 2)

    def break_one(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        x[0, 3, neuron] = bad
        return (x,)

    find_sites(model).tap(Place(layer, site)).module.register_forward_pre_hook(break_one)
    with attach(model, mask=pruned()) as attachment:
        logits = model(input_ids=ids).logits
        codes = take(attachment, LENGTH).codes_RG[:, 0]
    assert bool(torch.isfinite(logits).all())
    assert codes.tolist() == [Reading.INVALID if row == 3 else Reading.OUTSIDE for row in range(LENGTH)]


@pytest.mark.parametrize("site", [Site.KEY, Site.ATTENTION])
def test_a_hook_that_did_not_run_at_one_of_its_sites_is_missing(site: Site) -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, mask=pruned()) as attachment:
        assert bool((read(model, attachment, ids).codes_RG == Reading.OUTSIDE).all())
        find_sites(model).tap(Place(0, site)).module._forward_pre_hooks.clear()
        assert bool((read(model, attachment, ids).codes_RG == Reading.MISSING).all())


def test_only_picked_rows_are_read_and_all_are_pruned() -> None:
    model, ids = tiny_model("llama"), tokens(1, 9)
    rows = torch.tensor([2, 8])
    with attach(model, mask=pruned(), sums=fitted(model, ids)) as attachment:
        everything = read(model, attachment, ids)
        wanted = model(input_ids=ids).logits[:, rows]
        picked = model(input_ids=ids, logits_to_keep=rows).logits
        readings = take(attachment, 2)
    torch.testing.assert_close(picked, wanted)
    for name in readings.names:
        torch.testing.assert_close(readings.scores[name], everything.scores[name][rows])


def test_weights_that_train_are_not_written_in_place() -> None:
    model, ids = tiny_model("llama").requires_grad_(True), tokens(1, LENGTH)
    with attach(model, mask=pruned()):
        model(input_ids=ids).logits.sum().backward()


def test_a_guard_for_other_heads_leaves_no_hook() -> None:
    model = tiny_model("llama", head_dim=6)
    with pytest.raises(AttachError, match=rf"got attention vectors of 24 neurons, the guard was made for {D_MODEL}"):
        attach(model, sums=cubes(), mask=pruned())
    assert hooks(model) == 0


def test_the_sample_is_of_tiny_models() -> None:
    assert entry(pruned())[0].name == "selective-pruning"
    assert max(int(neurons.max()) for neurons in pruned().feed_forward.values()) == D_FF - 1
