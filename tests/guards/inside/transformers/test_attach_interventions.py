"""Neuron Adjust on a live model: which values move, how many are counted, and that draws hang on no batch."""

import pytest
import torch
from torch import Tensor

from guards.core.verdict import Reading
from guards.inside.transformers.sites import find_sites
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustGuard, adjust, layer_key
from guards.model.sites import Place, Site
from tests.guards.attached import KINDS, LENGTH, attach, keys, read, take
from tests.guards.samples import layer_statistics, neuron_adjust
from tests.models import D_FF, tiny_model, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_selected_neurons_keys_move_and_no_others(kind: str) -> None:
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    plain = keys(model, ids, layer=0)
    with attach(model, shift=neuron_adjust()):
        shifted = keys(model, ids, layer=0)
    moved = (plain != shifted).any(dim=0).nonzero().flatten().tolist()
    assert moved == [1, 5, 9]


def test_the_fused_up_half_is_untouched() -> None:
    model, ids = tiny_model("phi3"), tokens(1, LENGTH)
    module = find_sites(model).tap(Place(0, Site.PRE_ACTIVATION)).module
    seen: list[Tensor] = []
    plain_handle = module.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    model(input_ids=ids)
    plain_handle.remove()
    with attach(model, shift=neuron_adjust()):
        module.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        model(input_ids=ids)
    plain, shifted = seen
    assert torch.equal(plain[..., D_FF:], shifted[..., D_FF:])
    assert (plain != shifted).flatten(0, 1).any(dim=0).nonzero().flatten().tolist() == [1, 5, 9]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draw", list(Draw))
def test_the_count_is_of_neurons_moved_over_all_layers(kind: str, draw: Draw) -> None:
    model, ids, guard = tiny_model(kind), tokens(2, LENGTH), neuron_adjust(draw)
    positions = torch.arange(LENGTH).repeat(2)
    sites = find_sites(model)
    seen: dict[int, Tensor] = {}
    for layer in guard.layers:  # before the guard's own hooks, so that these see the values it gets
        sites.tap(Place(layer, Site.PRE_ACTIVATION)).module.register_forward_hook(
            lambda _, __, output, layer=layer: seen.__setitem__(layer, output.reshape(12, -1).clone())
        )
    with attach(model, shift=guard) as attachment:
        counted = read(model, attachment, ids).scores["shift"][:, 0]
    wanted = torch.zeros(12)
    for layer, statistics in guard.layers_statistics.items():
        _, moved = adjust(
            seen[layer][:, statistics.neurons_S],
            statistics,
            positions_T=positions,
            key=layer_key(layer, guard.seed),
            draw=draw,
        )
        wanted += moved.sum(dim=1)
    assert torch.equal(counted, wanted)
    assert float(wanted.sum()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_one_by_one(kind: str) -> None:
    """Draws included: they hang on position, layer and neuron, never on the row."""
    model, ids = tiny_model(kind), tokens(3, LENGTH)
    with attach(model, shift=neuron_adjust(Draw.RANDOM)) as attachment:
        together = model(input_ids=ids).logits
        counts = take(attachment, 3 * LENGTH).scores["shift"].view(3, LENGTH)
        for row, logits, count in zip(ids, together, counts, strict=True):
            torch.testing.assert_close(model(input_ids=row[None]).logits[0], logits, rtol=1e-3, atol=1e-4)
            assert torch.equal(take(attachment, LENGTH).scores["shift"][:, 0], count)


def test_decoding_with_a_cache_draws_as_prefilling_does() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, shift=neuron_adjust(Draw.RANDOM)) as attachment:
        whole = read(model, attachment, ids).scores["shift"]
        cache, steps = None, []
        for step in range(LENGTH):
            output = model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(take(attachment, 1).scores["shift"])
    assert torch.equal(torch.cat(steps), whole)
    assert len(set(whole.flatten().tolist())) > 1


def test_it_reads_outside_since_it_never_abstains() -> None:
    model = tiny_model("llama")
    with attach(model, shift=neuron_adjust()) as attachment:
        assert bool((read(model, attachment, tokens(1, LENGTH)).codes_RG == Reading.OUTSIDE).all())


def test_weights_that_train_are_not_written_in_place() -> None:
    model, ids = tiny_model("llama").requires_grad_(True), tokens(1, LENGTH)
    with attach(model, shift=neuron_adjust()):
        model(input_ids=ids).logits.sum().backward()


def test_positions_are_those_of_the_caller() -> None:
    """The same tokens at other positions draw otherwise."""
    model, ids = tiny_model("gpt_neox"), tokens(1, LENGTH)
    guard = NeuronAdjustGuard({0: layer_statistics(*range(D_FF))}, 1 / 3, Draw.RANDOM, 0)
    with attach(model, shift=guard) as attachment:
        first = read(model, attachment, ids, position_ids=torch.arange(LENGTH)[None]).scores["shift"]
        default = read(model, attachment, ids).scores["shift"]
        later = read(model, attachment, ids, position_ids=torch.arange(20, 20 + LENGTH)[None]).scores["shift"]
    assert torch.equal(first, default)
    assert not torch.equal(first, later)
