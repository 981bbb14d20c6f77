"""Guards on a live model: all or nothing, nothing left behind, readings per row, and no reading that passes by mistake.

Suffixes: R sampled rows, T tokens, F feed-forward width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.attach import Attachment, Readings
from guards.errors import AttachError, GuardReadingError
from guards.ksd import KSDFitter, KSDGuard, Regime, cube_score
from guards.methods import METHODS, Guard, Method
from guards.na import Draw, NeuronAdjustGuard, adjust
from guards.sites import FAMILIES, find_sites
from guards.verdict import Reading, Scope
from tests.guards.samples import cube, ksd, layer_statistics, neuron_adjust
from tests.models import D_FF, LAYERS, tiny_model, tokens

KINDS = sorted(FAMILIES)
LENGTH = 6


def entry(guard: Guard) -> tuple[Method, Guard]:
    """The guard with its method."""
    return METHODS["ksd" if isinstance(guard, KSDGuard) else "neuron-adjust"], guard


def attach(model: nn.Module, **guards: Guard) -> Attachment:
    """Guards by name."""
    return Attachment(model, find_sites(model), {name: entry(guard) for name, guard in guards.items()})


def hooks(model: nn.Module) -> int:
    """Hooks on the model and all of its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def read(model: nn.Module, attachment: Attachment, ids: Tensor, **arguments: Any) -> Readings:
    """One forward pass and its readings for every token."""
    model(input_ids=ids, **arguments)
    return attachment.take(ids.numel())


def keys(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> Tensor:
    """Key vectors of one layer, by a hook of our own."""
    seen: list[Tensor] = []
    module = find_sites(model).layers[layer].key
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, D_FF).clone()))
    model(input_ids=ids)
    handle.remove()
    return seen[0]


def fitted(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> KSDGuard:
    """A detector fitted on all tokens of some prompts."""
    fitter = KSDFitter(D_FF)
    fitter.update(keys(model, ids, layer))
    return KSDGuard((fitter.finish(layer, "bare"),), Scope.BOTH, Regime.ALL_TOKENS)


class TestInstallation:
    """All or nothing, and off again without a trace."""

    @pytest.mark.parametrize("layer", [LAYERS, 99, -1])
    def test_an_impossible_layer_leaves_no_hook(self, layer: int) -> None:
        model = tiny_model("llama")
        before = hooks(model)
        with pytest.raises(AttachError, match=rf"guard 'bad' wants layers \[0, {layer}\]|\[{layer}, 0\]"):
            attach(model, good=ksd(), other=neuron_adjust(), bad=ksd(cube(0), cube(layer)))
        assert hooks(model) == before

    def test_a_guard_without_a_layer_is_refused(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(AttachError, match=r"guard 'empty' wants layers \[\]"):
            attach(model, empty=KSDGuard((), Scope.BOTH, Regime.LAST_TOKEN))
        assert hooks(model) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_removing_restores_every_bit(self, kind: str) -> None:
        model = tiny_model(kind)
        plain = model(tokens(2, LENGTH)).logits
        attachment = attach(model, sums=ksd(), shift=neuron_adjust())
        assert hooks(model) == 1 + 1 + 2
        assert not torch.equal(model(tokens(2, LENGTH)).logits, plain)  # positive control: it was on
        attachment.remove()
        attachment.remove()
        assert hooks(model) == 0
        assert torch.equal(model(tokens(2, LENGTH)).logits, plain)

    def test_the_context_manager_removes(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(RuntimeError, match="stop"), attach(model, sums=ksd()):
            raise RuntimeError("stop")
        assert hooks(model) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_detectors_change_nothing(self, kind: str) -> None:
        model = tiny_model(kind)
        plain = model(tokens(2, LENGTH)).logits
        with attach(model, one=ksd(), many=ksd(cube(0), cube(1), cube(1, seed=4))):
            assert torch.equal(model(tokens(2, LENGTH)).logits, plain)

    def test_no_guard_gives_no_column(self) -> None:
        model = tiny_model("llama")
        with attach(model) as attachment:
            readings = read(model, attachment, tokens(1, LENGTH))
        assert readings.names == ()
        assert readings.codes_RG.shape == (LENGTH, 0)


class TestDetectors:
    """Scores and codes of Key Space Detection."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_claim(self, kind: str) -> None:
        """Prompts the cube was fitted on are inside; the same tokens in another order are, for some token, outside."""
        model = tiny_model(kind)
        ids = tokens(4, LENGTH)
        guard = fitted(model, ids)
        with attach(model, sums=guard) as attachment:
            same = read(model, attachment, ids)
            other = read(model, attachment, tokens(4, LENGTH, seed=77))
        assert bool((same.codes_RG == Reading.INSIDE).all())
        assert bool((other.codes_RG == Reading.OUTSIDE).any())

    @pytest.mark.parametrize("kind", KINDS)
    def test_scores_are_those_of_the_key_vectors(self, kind: str) -> None:
        model, ids = tiny_model(kind), tokens(2, LENGTH)
        cubes = (cube(2, seed=1), cube(0, seed=2), cube(2, seed=3, tau=0.5))
        with attach(model, sums=ksd(*cubes)) as attachment:
            readings = read(model, attachment, ids)
        wanted = [cube_score(keys(model, ids, c.layer), c.mean_F, 1 / c.std_F) for c in cubes]
        torch.testing.assert_close(readings.scores["sums"], torch.stack(wanted, dim=1))

    def test_one_cube_of_several_is_enough(self) -> None:
        model, ids = tiny_model("llama"), tokens(2, LENGTH)
        (inside,) = fitted(model, ids).cubes
        narrow = cube(0, tau=1e-6)
        for cubes, wanted in (((narrow, inside), Reading.INSIDE), ((narrow,), Reading.OUTSIDE)):
            with attach(model, sums=ksd(*cubes)) as attachment:
                assert bool((read(model, attachment, ids).codes_RG == wanted).all())

    def test_several_guards_keep_their_names_and_columns(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        guards = {"a": fitted(model, ids), "b": ksd(cube(1, tau=1e-6)), "c": fitted(model, ids, layer=0)}
        with attach(model, **guards) as attachment:
            readings = read(model, attachment, ids)
        assert readings.names == ("a", "b", "c")
        assert readings.codes_RG[0].tolist() == [Reading.INSIDE, Reading.OUTSIDE, Reading.INSIDE]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_equals_one_by_one(self, kind: str) -> None:
        model, ids = tiny_model(kind), tokens(3, LENGTH)
        with attach(model, sums=ksd(cube(0), cube(2))) as attachment:
            together = read(model, attachment, ids).scores["sums"].view(3, LENGTH, 2)
            alone = [read(model, attachment, row[None]).scores["sums"] for row in ids]
        # Matrix products of other shapes sum in other orders: float32's rounding, nothing else.
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)

    def test_picked_rows_equal_all_rows(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, 9)
        rows = torch.tensor([2, 8, 5])
        with attach(model, sums=ksd(), shift=neuron_adjust()) as attachment:
            everything = read(model, attachment, ids)
            logits = model(input_ids=ids, logits_to_keep=rows).logits
            picked = attachment.take(3)
            assert logits.shape[1] == 3
        assert torch.equal(picked.codes_RG, everything.codes_RG[rows])
        for name in ("sums", "shift"):
            torch.testing.assert_close(picked.scores[name], everything.scores[name][rows])

    def test_packed_sequences_equal_one_by_one(self) -> None:
        """Three prompts in one row, kept apart by positions and mask, and their last tokens picked."""
        model = tiny_model("llama")
        prompts = [tokens(1, n, seed=n) for n in (3, 5, 2)]
        packed = torch.cat(prompts, dim=1)
        owner = torch.cat([torch.full((p.shape[1],), i) for i, p in enumerate(prompts)])
        order = torch.arange(len(owner))
        allowed = (owner[:, None] == owner[None]) & (order[:, None] >= order[None])
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
        positions = torch.cat([torch.arange(p.shape[1]) for p in prompts])[None]
        last = torch.tensor([2, 7, 9])
        guards: dict[str, Guard] = {"sums": ksd(cube(0), cube(2)), "shift": neuron_adjust(Draw.RANDOM)}
        with attach(model, **guards) as attachment:
            model(input_ids=packed, attention_mask=mask, position_ids=positions, logits_to_keep=last)
            together = attachment.take(3)
            alone = []
            for prompt in prompts:
                model(input_ids=prompt, logits_to_keep=torch.tensor([prompt.shape[1] - 1]))
                alone.append(attachment.take(1))
        for name in guards:
            wanted = torch.cat([readings.scores[name] for readings in alone])
            torch.testing.assert_close(together.scores[name], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(together.codes_RG, torch.cat([readings.codes_RG for readings in alone]))


class TestInterventions:
    """Neuron Adjust on a model."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_selected_neurons_keys_move_and_no_others(self, kind: str) -> None:
        model, ids = tiny_model(kind), tokens(2, LENGTH)
        plain = keys(model, ids, layer=0)
        with attach(model, shift=neuron_adjust()):
            shifted = keys(model, ids, layer=0)
        moved = (plain != shifted).any(dim=0).nonzero().flatten().tolist()
        assert moved == [1, 5, 9]

    def test_the_fused_up_half_is_untouched(self) -> None:
        model, ids = tiny_model("phi3"), tokens(1, LENGTH)
        module = find_sites(model).layers[0].pre_activation
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
    def test_the_count_is_of_neurons_moved_over_all_layers(self, kind: str, draw: Draw) -> None:
        model, ids, guard = tiny_model(kind), tokens(2, LENGTH), neuron_adjust(draw)
        positions = torch.arange(LENGTH).repeat(2)
        sites = find_sites(model)
        seen: dict[int, Tensor] = {}
        for layer in guard.layers:  # before the guard's own hooks, so that these see the values it gets
            sites.layers[layer].pre_activation.register_forward_hook(
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
                index=layer,
                draw=draw,
                seed=guard.seed,
            )
            wanted += moved.sum(dim=1)
        assert torch.equal(counted, wanted)
        assert float(wanted.sum()) > 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_equals_one_by_one(self, kind: str) -> None:
        """Draws included: they hang on position, layer and neuron, never on the row."""
        model, ids = tiny_model(kind), tokens(3, LENGTH)
        with attach(model, shift=neuron_adjust(Draw.RANDOM)) as attachment:
            together = model(input_ids=ids).logits
            counts = attachment.take(3 * LENGTH).scores["shift"].view(3, LENGTH)
            for row, logits, count in zip(ids, together, counts, strict=True):
                torch.testing.assert_close(model(input_ids=row[None]).logits[0], logits, rtol=1e-3, atol=1e-4)
                assert torch.equal(attachment.take(LENGTH).scores["shift"][:, 0], count)

    def test_decoding_with_a_cache_draws_as_prefilling_does(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        with attach(model, shift=neuron_adjust(Draw.RANDOM)) as attachment:
            whole = read(model, attachment, ids).scores["shift"]
            cache, steps = None, []
            for step in range(LENGTH):
                output = model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                steps.append(attachment.take(1).scores["shift"])
        assert torch.equal(torch.cat(steps), whole)
        assert len(set(whole.flatten().tolist())) > 1

    def test_it_reads_outside_since_it_never_abstains(self) -> None:
        model = tiny_model("llama")
        with attach(model, shift=neuron_adjust()) as attachment:
            assert bool((read(model, attachment, tokens(1, LENGTH)).codes_RG == Reading.OUTSIDE).all())

    def test_weights_that_train_are_not_written_in_place(self) -> None:
        model, ids = tiny_model("llama").requires_grad_(True), tokens(1, LENGTH)
        with attach(model, shift=neuron_adjust()):
            model(input_ids=ids).logits.sum().backward()


class TestFailClosed:
    """What is broken reads MISSING, INVALID or raises; never OUTSIDE."""

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_broken_weight_is_invalid(self, kind: str, bad: float) -> None:
        model, ids = tiny_model(kind), tokens(2, LENGTH)
        guards: dict[str, Guard] = {"sums": fitted(model, ids), "shift": neuron_adjust()}
        sites = find_sites(model)
        matrix = sites.layers[0].pre_activation.weight
        assert isinstance(matrix, Tensor)
        matrix[:] = bad
        with attach(model, **guards) as attachment:
            codes = read(model, attachment, ids).codes_RG
        assert bool((codes == Reading.INVALID).all())

    def test_one_broken_neuron_of_one_token_is_invalid_there(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        guard = fitted(model, ids)

        def break_one(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            key = args[0].clone()
            key[0, 3, 11] = torch.nan
            return (key,)

        find_sites(model).layers[-1].key.register_forward_pre_hook(break_one)
        with attach(model, sums=guard) as attachment:
            codes = read(model, attachment, ids).codes_RG[:, 0]
        assert codes.tolist() == [Reading.INVALID if row == 3 else Reading.INSIDE for row in range(LENGTH)]

    def test_an_invalid_cube_is_not_outvoted(self) -> None:
        """Inside one cube and not a number in another: the reading is INVALID."""
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        (good,) = fitted(model, ids).cubes
        broken = cube(0)
        broken.mean_F[0] = torch.nan
        with attach(model, sums=ksd(good, broken)) as attachment:
            assert bool((read(model, attachment, ids).codes_RG == Reading.INVALID).all())

    @pytest.mark.parametrize("layer", [0, 2])
    def test_a_hook_that_did_not_fire_is_missing(self, layer: int) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        sites = find_sites(model)
        with attach(model, sums=ksd(cube(0), cube(2)), shift=neuron_adjust()) as attachment:
            sites.layers[layer].key._forward_pre_hooks.clear()
            sites.layers[layer].pre_activation._forward_hooks.clear()
            readings = read(model, attachment, ids)
        assert bool((readings.codes_RG == Reading.MISSING).all())
        assert not bool(torch.isfinite(readings.scores["sums"]).any())

    def test_a_projection_called_around_its_hooks_is_missing(self) -> None:
        """As a fused kernel would that reads the weight and never calls the module."""
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        block = model.model.layers[2].mlp

        def fused(x: Tensor) -> Tensor:
            return nn.functional.linear(block.act_fn(block.gate_proj(x)) * block.up_proj(x), block.down_proj.weight)

        with attach(model, sums=ksd()) as attachment:
            block.forward = fused
            assert bool((read(model, attachment, ids).codes_RG == Reading.MISSING).all())

    def test_a_replaced_projection_is_missing(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        with attach(model, sums=ksd()) as attachment:
            old = model.model.layers[2].mlp.down_proj
            model.model.layers[2].mlp.down_proj = nn.Linear(old.in_features, old.out_features, bias=False)
            assert bool((read(model, attachment, ids).codes_RG == Reading.MISSING).all())

    def test_too_few_rows_are_missing(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        with attach(model, sums=ksd(), shift=neuron_adjust()) as attachment:
            model(input_ids=ids)
            assert bool((attachment.take(LENGTH + 1).codes_RG == Reading.MISSING).all())

    def test_taking_without_a_forward_pass_raises(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        with attach(model, sums=ksd()) as attachment:
            with pytest.raises(GuardReadingError, match="no guarded forward pass"):
                attachment.take(1)
            read(model, attachment, ids)
            with pytest.raises(GuardReadingError, match="no guarded forward pass"):
                attachment.take(1)

    def test_a_layer_run_twice_raises(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        block = model.model.layers[2].mlp
        once = block.forward
        block.forward = lambda x: once(x) + once(x)
        with attach(model, sums=ksd()), pytest.raises(GuardReadingError, match="layer 2 ran twice"):
            model(input_ids=ids)

    def test_a_block_run_outside_the_model_raises(self) -> None:
        model = tiny_model("llama")
        with attach(model, sums=ksd()), pytest.raises(GuardReadingError, match="outside a forward pass"):
            model.model.layers[2].mlp(torch.randn(1, 2, 16))

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"input_ids": tokens(1, 4), "logits_to_keep": 1}, "wanted a tensor of row indices"),
            ({"input_ids": tokens(2, 4), "logits_to_keep": torch.tensor([1])}, "wanted a packed batch of 1"),
            ({"inputs_embeds": torch.zeros(1, 4, 16)}, "without input_ids"),
        ],
    )
    def test_rows_that_cannot_be_told_raise(self, arguments: dict[str, Any], complaint: str) -> None:
        model = tiny_model("llama")
        with attach(model, sums=ksd()), pytest.raises(GuardReadingError, match=complaint):
            model(**arguments)

    def test_a_pass_that_died_half_way_is_forgotten(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)

        def die(_: nn.Module, __: Any) -> None:
            raise RuntimeError("out of memory")

        with attach(model, low=ksd(cube(0)), high=ksd()) as attachment:
            wanted = read(model, attachment, ids).codes_RG
            handle = find_sites(model).layers[1].key.register_forward_pre_hook(die)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(input_ids=ids)
            assert bool((attachment.take(LENGTH).codes_RG[:, 1] == Reading.MISSING).all())
            handle.remove()
            assert torch.equal(read(model, attachment, ids).codes_RG, wanted)


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
