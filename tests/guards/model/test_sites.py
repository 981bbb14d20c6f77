"""Every family's sites on a tiny model: the tensors are where the table says, and changing them changes the model.

Suffixes: T tokens, F feed-forward width, D model width.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.errors import UnsupportedModelError
from guards.inside.transformers.sites import find_sites, projection_shape
from guards.model.families import FAMILIES
from guards.model.sites import SITES, End, Form, ModelSites, Place, Site, Tap, Width
from tests.models import CONFIGS, D_FF, D_MODEL, DENSE_LAYERS, EXPERTS, LAYERS, RECURRENT, tiny_model, tokens

KINDS = sorted(CONFIGS)
FUSED = ("glm", "glm4", "granitemoehybrid", "phi3")
PLAIN = ("opt", "gpt2", "gpt_neox")
ATTENDING = {kind: [i for i in range(LAYERS) if i == 1 or kind not in RECURRENT] for kind in KINDS}
"""Layers with attention."""


def weight(module: nn.Module) -> Tensor:
    """A projection's weight as [outputs, inputs]; GPT-2's Conv1D keeps it the other way round."""
    matrix = module.weight
    assert isinstance(matrix, Tensor)
    return matrix.T if type(module).__name__ == "Conv1D" else matrix


class Recorder:
    """Inputs and outputs of every feed-forward projection of one forward pass."""

    def __init__(self, model: nn.Module, sites: ModelSites) -> None:
        self.keys: list[Tensor] = []
        self.block_outputs: list[Tensor] = []
        self.pre_activations: list[Tensor] = []
        self.gated_inputs: list[Tensor] = []
        for layer in range(sites.layers):
            sites.tap(Place(layer, Site.KEY)).module.register_forward_hook(self._key)
            sites.tap(Place(layer, Site.PRE_ACTIVATION)).module.register_forward_hook(self._pre_activation)
        self.logits = model(tokens(1, 6)).logits

    def _key(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.keys.append(args[0].reshape(-1, D_FF).clone())
        self.block_outputs.append(output.reshape(-1, D_MODEL).clone())

    def _pre_activation(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.gated_inputs.append(args[0].reshape(-1, D_MODEL).clone())
        self.pre_activations.append(output.reshape(-1, output.shape[-1]).clone())


def feed_forward(kind: str, model: nn.Module, layer: int) -> nn.Module:
    """The block that holds the activation function and, where there is one, the up projection."""
    family = FAMILIES[kind]
    name = f"{family.block.format(layer=layer)}.{family.paths[Site.KEY].module}".rpartition(".")[0]
    return model.get_submodule(name)


def activation(block: nn.Module) -> Any:
    """The model's own activation function."""
    for name in ("act_fn", "activation_fn", "activation", "act"):
        if hasattr(block, name):
            return getattr(block, name)
    if type(block).__name__ == "Lfm2MLP":
        return torch.nn.functional.silu
    raise AssertionError(f"no activation in {block}")


def test_every_family_has_a_tiny_model() -> None:
    assert {*CONFIGS, *EXPERTS} == set(FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_resolve_with_their_widths(kind: str) -> None:
    sites = find_sites(tiny_model(kind))
    assert (sites.layers, sites.d_ff, sites.d_model) == (LAYERS, D_FF, D_MODEL)
    assert list(sites.blocks) == list(range(LAYERS))
    for layer in range(LAYERS):
        assert projection_shape(sites.tap(Place(layer, Site.KEY)).module) == (D_FF, D_MODEL)
        for site in Site:
            if site is Site.ATTENTION and layer not in ATTENDING[kind]:
                with pytest.raises(UnsupportedModelError, match="no attention site: it mixes tokens without attention"):
                    sites.tap(Place(layer, site))
                continue
            tap = sites.tap(Place(layer, site))
            assert tap.end is SITES[site].end
            fused = kind in FUSED and site is Site.PRE_ACTIVATION
            assert tap.form is (Form.FIRST_HALF if fused else Form.WHOLE)


def test_a_site_that_a_model_does_not_have_is_refused_by_name() -> None:
    taps = {Site.KEY: Tap(nn.Linear(2, 2), End.INPUT, Form.WHOLE)}
    sites = ModelSites({1: taps}, 2, dict.fromkeys(Width, 2))
    assert sites.tap(Place(1, Site.KEY)) is taps[Site.KEY]
    with pytest.raises(UnsupportedModelError, match="layer 1 of this model has no residual site"):
        sites.tap(Place(1, Site.RESIDUAL))


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_what_the_value_matrix_multiplies(kind: str) -> None:
    model = tiny_model(kind)
    sites = find_sites(model)
    recorded = Recorder(model, sites)
    for layer, key_TF, output_TD in zip(range(LAYERS), recorded.keys, recorded.block_outputs, strict=True):
        module = sites.tap(Place(layer, Site.KEY)).module
        bias = getattr(module, "bias", None)
        by_hand = key_TF @ weight(module).T + (0 if bias is None else bias)
        torch.testing.assert_close(output_TD, by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_the_activated_gate_times_up(kind: str) -> None:
    model = tiny_model(kind)
    sites = find_sites(model)
    recorded = Recorder(model, sites)
    for index, (pre, key_TF) in enumerate(zip(recorded.pre_activations, recorded.keys, strict=True)):
        block = feed_forward(kind, model, index)
        act = activation(block)
        if sites.tap(Place(index, Site.PRE_ACTIVATION)).form is Form.FIRST_HALF:
            wanted = act(pre[:, :D_FF]) * pre[:, D_FF:]
        elif kind in PLAIN:
            wanted = act(pre)
        else:
            up = block.get_submodule("w3" if kind == "lfm2" else "up_proj")
            wanted = act(pre) * up(recorded.gated_inputs[index])
        torch.testing.assert_close(key_TF, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_replacing_the_key_changes_the_output_as_by_hand(kind: str, layer: int) -> None:
    """One neuron zeroed by a hook equals its column of the value matrix zeroed; and it matters."""
    model = tiny_model(kind)
    module = find_sites(model).tap(Place(layer, Site.KEY)).module
    plain = model(tokens(1, 6)).logits

    def zero(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        key = args[0].clone()
        key[..., 7] = 0
        return (key,)

    handle = module.register_forward_pre_hook(zero)
    hooked = model(tokens(1, 6)).logits
    handle.remove()
    weight(module)[:, 7] = 0
    torch.testing.assert_close(hooked, model(tokens(1, 6)).logits)
    assert not torch.allclose(hooked, plain, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_a_pre_activation_changes_its_key_alone(kind: str) -> None:
    model = tiny_model(kind)
    sites = find_sites(model)
    plain = Recorder(model, sites).keys[0]
    model = tiny_model(kind)
    sites = find_sites(model)

    def lift(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., 3] += 1
        return output

    sites.tap(Place(0, Site.PRE_ACTIVATION)).module.register_forward_hook(lift)
    moved = (Recorder(model, sites).keys[0] != plain).any(dim=0)
    assert moved.nonzero().flatten().tolist() == [3]


HEADS_OF_THEIR_OWN = [kind for kind in KINDS if "head_dim" in CONFIGS[kind] or kind in ("llama", "mistral")]
"""Families whose heads together need not be as wide as the model."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_vector_is_what_the_output_projection_multiplies(kind: str) -> None:
    """One of its neurons zeroed by a hook equals its column of the projection zeroed; and it matters."""
    wide = {"head_dim": 6} if kind in HEADS_OF_THEIR_OWN else {}
    if "global_head_dim" in CONFIGS[kind]:
        wide["global_head_dim"] = 6
    model = tiny_model(kind, **wide)
    sites = find_sites(model)
    assert {site: sites.width(site) for site in Site} == {
        **dict.fromkeys((Site.KEY, Site.OUTPUT, Site.PRE_ACTIVATION), D_FF),
        Site.ATTENTION: 4 * 6 if wide else D_MODEL,
        Site.RESIDUAL: D_MODEL,
    }
    module = sites.tap(Place(1, Site.ATTENTION)).module
    plain = model(tokens(1, 6)).logits

    def zero(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        vector = args[0].clone()
        vector[..., 13] = 0
        return (vector,)

    handle = module.register_forward_pre_hook(zero)
    hooked = model(tokens(1, 6)).logits
    handle.remove()
    weight(module)[:, 13] = 0
    torch.testing.assert_close(hooked, model(tokens(1, 6)).logits)
    assert not torch.allclose(hooked, plain, atol=1e-4)


def test_the_fused_projection_holds_the_gate_first() -> None:
    """Phi-3: raising the second half changes keys without passing the activation function."""
    model = tiny_model("phi3")
    sites = find_sites(model)
    assert projection_shape(sites.tap(Place(0, Site.PRE_ACTIVATION)).module) == (D_MODEL, 2 * D_FF)
    recorded = Recorder(model, sites)
    up = recorded.pre_activations[0][:, D_FF:]
    gate = recorded.pre_activations[0][:, :D_FF]
    torch.testing.assert_close(recorded.keys[0] / up, activation(feed_forward("phi3", model, 0))(gate))


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_a_block_of_experts_has_no_key_vector(kind: str) -> None:
    """What it gives and its attention are sites; blocks without experts have them all."""
    sites = find_sites(tiny_model(kind))
    dense = DENSE_LAYERS.get(kind, ())
    assert (sites.layers, sites.d_ff, sites.d_model) == (LAYERS, D_FF if dense else 0, D_MODEL)
    for layer in range(LAYERS):
        assert sites.tap(Place(layer, Site.RESIDUAL)).end is End.OUTPUT
        if kind not in RECURRENT or layer == 1:
            assert projection_shape(sites.tap(Place(layer, Site.ATTENTION)).module)[1] == D_MODEL
        for site in (Site.PRE_ACTIVATION, Site.KEY):
            if layer in dense:
                assert sites.tap(Place(layer, site)).end is SITES[site].end
                continue
            with pytest.raises(UnsupportedModelError, match=rf"layer {layer} .* no {site} site: .*mixture of experts"):
                sites.tap(Place(layer, site))
    if not dense:
        with pytest.raises(UnsupportedModelError, match="no layer of this model has a key site"):
            sites.width(Site.KEY)


@pytest.mark.parametrize("kind", [*KINDS, *sorted(EXPERTS)])
def test_the_residual_is_what_the_next_block_reads(kind: str) -> None:
    model = tiny_model(kind)
    sites = find_sites(model)
    read: list[Tensor] = []
    given: list[Tensor] = []
    for layer in range(LAYERS):
        block = sites.tap(Place(layer, Site.RESIDUAL)).module
        block.register_forward_pre_hook(
            lambda _, args, kwargs: read.append((*args, *kwargs.values())[0].clone()), with_kwargs=True
        )
        block.register_forward_hook(
            lambda _, __, output: given.append((output[0] if isinstance(output, tuple) else output).clone())
        )
    model(tokens(1, 6))
    for before, after in zip(given[:-1], read[1:], strict=True):
        assert torch.equal(before, after)
    assert not torch.allclose(given[0], given[1])


def test_experts_of_a_family_that_is_known_dense_are_refused_by_name() -> None:
    model = tiny_model("llama")
    model.config.num_local_experts = 4
    with pytest.raises(UnsupportedModelError, match="'llama' is a mixture of experts"):
        find_sites(model)


def test_a_block_with_neither_a_network_nor_experts_is_refused() -> None:
    model = tiny_model("mixtral")
    del model.model.layers[1].mlp.experts
    with pytest.raises(UnsupportedModelError, match=r"lacks 2 expected module\(s\): model\.layers\.1\.mlp\.gate_proj"):
        find_sites(model)


def test_experts_beside_a_dense_network_leave_it_no_key_vector() -> None:
    """Gemma 4 and Granite 4 have both: a guard on the dense one alone would miss what the experts do."""
    gemma = tiny_model("gemma4_text", enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=8)
    granite = tiny_model("granitemoehybrid", num_local_experts=4, num_experts_per_tok=2)
    for model in (gemma, granite):
        with pytest.raises(UnsupportedModelError, match="mixture of experts"):
            find_sites(model).tap(Place(0, Site.KEY))


def test_layers_of_another_width_lack_the_site_where_a_family_may_vary() -> None:
    """Gemma 4: wider heads where attention is full, wider networks where layers share keys and values."""
    model = tiny_model("gemma4_text", global_head_dim=8, num_kv_shared_layers=1, use_double_wide_mlp=True)
    sites = find_sites(model)
    assert (sites.width(Site.ATTENTION), sites.width(Site.KEY)) == (16, D_FF)
    assert sites.tap(Place(1, Site.KEY))
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .* no attention site: its d_attention is 32, not the 16"):
        sites.tap(Place(1, Site.ATTENTION))
    with pytest.raises(UnsupportedModelError, match=r"layer 2 .* no key site: its d_ff is 48, not the 24 of layer 0"):
        sites.tap(Place(2, Site.KEY))


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    model = tiny_model("llama")
    model.config.model_type = "mamba"
    with pytest.raises(UnsupportedModelError, match=r"'mamba' has no known sites; known: gemma, gemma2"):
        find_sites(model)


def test_opt_without_a_final_norm_resolves_like_others() -> None:
    """OPT-350M norms after attention and has none at the end, which no site needs."""
    model = tiny_model("opt", do_layer_norm_before=False)
    assert not hasattr(model.model.decoder, "final_layer_norm") or model.model.decoder.final_layer_norm is None
    sites, like = find_sites(model), find_sites(tiny_model("opt"))
    assert (sites.layers, sites.widths) == (like.layers, like.widths)
    for layer, site in itertools.product(range(LAYERS), Site):
        tap = sites.tap(Place(layer, site))
        (name,) = [name for name, module in model.named_modules() if module is tap.module]
        assert (name, tap.end, tap.form) == (
            ".".join(filter(None, (f"model.decoder.layers.{layer}", FAMILIES["opt"].paths[site].module))),
            *(SITES[site].end, Form.WHOLE),
        )
    recorded = Recorder(model, sites)
    for layer, key_TF, pre in zip(range(LAYERS), recorded.keys, recorded.pre_activations, strict=True):
        torch.testing.assert_close(key_TF, activation(feed_forward("opt", model, layer))(pre))


def test_every_missing_module_is_counted() -> None:
    model = tiny_model("llama")
    del model.model.layers[1].mlp.down_proj
    del model.model.layers[2].mlp.gate_proj
    with pytest.raises(UnsupportedModelError, match=r"lacks 2 .*layers\.1\.mlp\.down_proj.*layers\.2\.mlp\.gate"):
        find_sites(model)


def test_a_quantised_projection_is_refused() -> None:
    class Packed(nn.Module):
        """Stands for a quantised layer: no Linear, an integer weight of another shape."""

    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = Packed()
    with pytest.raises(UnsupportedModelError, match="got a Packed where a Linear"):
        find_sites(model)


def test_layers_of_differing_width_are_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(D_FF + 1, D_MODEL)
    with pytest.raises(
        UnsupportedModelError, match=r"block 1: got a pre-activation of width 24 and .* projection of \(25, 16\)"
    ):
        find_sites(model)


def test_attention_of_differing_width_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj = nn.Linear(D_MODEL + 4, D_MODEL)
    with pytest.raises(UnsupportedModelError, match=r"block 1: got d_attention 20, wanted that of block 0 .*: 16"):
        find_sites(model)


def test_attention_that_gives_another_width_than_the_model_has_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj = nn.Linear(D_MODEL, D_MODEL + 4)
    with pytest.raises(UnsupportedModelError, match=r"block 1: .* differing width \(feed-forward 16, attention 20\)"):
        find_sites(model)
