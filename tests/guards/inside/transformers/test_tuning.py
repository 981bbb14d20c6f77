"""Deltas beside weights: the right weights, as if they were in them, and nothing above the layer that is looked at."""

import pytest
import torch
from torch import Tensor

from guards.calibration.activations import TokenIds
from guards.calibration.tuning import Example
from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import LoadedModel
from guards.model.sites import Place, Site
from tests.guards.attached import hooks
from tests.guards.tiny import tiny_loaded
from tests.models import CONFIGS, D_FF, D_MODEL, DENSE_LAYERS, EXPERTS, LAYERS, tokens

LENGTHS = (5, 9, 3)
EXAMPLES = [Example(tuple(tokens(n, seed=n).tolist()), n % 3) for n in LENGTHS]
RTOL, ATOL = 1e-4, 1e-5
"""float32 matrix products of other shapes sum in another order."""


def weight(loaded: LoadedModel, layer: int) -> Tensor:
    """The projection's own weight as [d_model, d_ff]: GPT-2's lies transposed."""
    module = loaded.sites.tap(Place(layer, Site.KEY)).module
    found = module.weight
    assert isinstance(found, Tensor)
    return found.T if type(module).__name__ == "Conv1D" else found


def residual(loaded: LoadedModel, layer: int, ids: TokenIds) -> Tensor:
    """After one block of the whole model, by a hook of the test's own, [T, D]."""
    kept: list[Tensor] = []
    block = loaded.sites.tap(Place(layer, Site.RESIDUAL)).module
    handle = block.register_forward_hook(
        lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0].reshape(len(ids), D_MODEL)


def wanted(loaded: LoadedModel, layer: int) -> Tensor:
    return torch.cat([residual(loaded, layer, ids)[first:] for ids, first in EXAMPLES])


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_delta_is_as_if_it_were_in_the_weight(kind: str) -> None:
    loaded = tiny_loaded(kind)
    trained, looked_at = (0, 1), (1, 2)
    with loaded.tuned(trained) as tuned:
        opened = tuned.open(looked_at, EXAMPLES)
        for layer in looked_at:
            torch.testing.assert_close(opened.before[layer], wanted(loaded, layer), rtol=RTOL, atol=ATOL)
            torch.testing.assert_close(opened.after()[layer], opened.before[layer], rtol=0, atol=0)
        for layer, delta in tuned.deltas.items():
            delta.data.normal_(std=0.2, generator=torch.Generator().manual_seed(layer))
        after = {layer: states.detach() for layer, states in opened.after().items()}
        deltas = {layer: delta.detach().clone() for layer, delta in tuned.deltas.items()}
    folded = tiny_loaded(kind)
    for layer, delta_DF in deltas.items():
        assert delta_DF.shape == (D_MODEL, D_FF)
        weight(folded, layer).add_(delta_DF)
    for layer in looked_at:
        torch.testing.assert_close(after[layer], wanted(folded, layer), rtol=RTOL, atol=ATOL)
        assert not torch.allclose(after[layer], opened.before[layer], rtol=RTOL, atol=ATOL), "positive control"
    assert not hooks(loaded.model)
    torch.testing.assert_close(wanted(loaded, 2), opened.before[2], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "olmo2", "qwen2", "gpt2"])
def test_what_moves_is_the_projection_by_name_where_an_index_takes_another(kind: str) -> None:
    loaded = tiny_loaded(kind)
    names = dict(loaded.model.named_modules())
    projections = {"gpt2": "transformer.h.{}.mlp.c_proj"}.get(kind, "model.layers.{}.mlp.down_proj")
    with loaded.tuned((0, 1)) as tuned:
        for layer in tuned.deltas:
            module = loaded.sites.tap(Place(layer, Site.KEY)).module
            assert module is names[projections.format(layer)]
            assert len(module._forward_hooks) == 1
        assert sum(len(each._forward_hooks) for each in names.values()) == 2
    block = loaded.sites.tap(Place(0, Site.RESIDUAL)).module
    seventh = [name for name, _ in block.named_parameters()][6]
    assert not seventh.startswith(("mlp.down_proj", "mlp.c_proj")), "positive control: the reference's index"


def test_gradients_reach_the_deltas_alone_and_are_those_of_the_weights() -> None:
    loaded = tiny_loaded()
    with loaded.tuned((0, 1)) as tuned:
        opened = tuned.open((2,), EXAMPLES)
        torch.autograd.backward(opened.after()[2].square().mean())
        assert all(parameter.grad is None for parameter in loaded.model.parameters())
        got = [delta.grad for delta in tuned.deltas.values()]
    whole = tiny_loaded()
    weights = [whole.model.model.layers[layer].mlp.down_proj.weight.requires_grad_() for layer in (0, 1)]
    kept: list[Tensor] = []
    whole.model.model.layers[2].register_forward_hook(lambda _, __, output: kept.append(output))
    for ids, first in EXAMPLES:
        whole.model(input_ids=torch.tensor([ids]), use_cache=False)
        kept[-1] = kept[-1].reshape(len(ids), D_MODEL)[first:]
    torch.autograd.backward(torch.cat(kept).square().mean())
    for gradient, each in zip(got, weights, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, each.grad, rtol=1e-3, atol=ATOL)


def test_no_block_above_the_last_one_runs_and_none_below_the_first_runs_again() -> None:
    loaded = tiny_loaded()
    ran: list[int] = []
    for layer in range(LAYERS):
        block = loaded.sites.tap(Place(layer, Site.RESIDUAL)).module
        block.register_forward_pre_hook(lambda _, __, layer=layer: ran.append(layer))
    with loaded.tuned((1,)) as tuned:
        opened = tuned.open((1,), EXAMPLES)
        assert ran == [0, 1]
        opened.after()
        assert ran == [0, 1, 1]


def test_experts_have_no_projection_to_move() -> None:
    kind = "qwen3_moe"
    assert kind in EXPERTS
    assert kind not in DENSE_LAYERS
    with pytest.raises(UnsupportedModelError, match="mixture of experts"), tiny_loaded(kind).tuned((0,)):
        pass
