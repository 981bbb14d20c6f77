"""Guards on a live model: all or nothing, nothing left behind, and a detector's readings row by row."""

import pytest
import torch

from guards.contract.guard import Guard
from guards.core.verdict import Reading, Scope
from guards.errors import AttachError
from guards.methods.cube.guard import CubeGuard, Regime, cube_score
from guards.methods.neuron_adjust.guard import Draw
from tests.guards.attached import KINDS, LENGTH, attach, fitted, hooks, keys, read, take
from tests.guards.samples import cube, cubes, neuron_adjust
from tests.models import LAYERS, tiny_model, tokens


class TestInstallation:
    """All or nothing, and off again without a trace."""

    @pytest.mark.parametrize("layer", [LAYERS, 99, -1])
    def test_an_impossible_layer_leaves_no_hook(self, layer: int) -> None:
        model = tiny_model("llama")
        before = hooks(model)
        with pytest.raises(AttachError, match=rf"guard 'bad' wants layers \[0, {layer}\]|\[{layer}, 0\]"):
            attach(model, good=cubes(), other=neuron_adjust(), bad=cubes(cube(0), cube(layer)))
        assert hooks(model) == before

    def test_a_guard_without_a_layer_is_refused(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(AttachError, match=r"guard 'empty' wants layers \[\]"):
            attach(model, empty=CubeGuard((), Scope.BOTH, Regime.LAST_TOKEN))
        assert hooks(model) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_removing_restores_every_bit(self, kind: str) -> None:
        model = tiny_model(kind)
        plain = model(tokens(2, LENGTH)).logits
        attachment = attach(model, sums=cubes(), shift=neuron_adjust())
        assert hooks(model) == 1 + 1 + 2
        assert not torch.equal(model(tokens(2, LENGTH)).logits, plain)  # positive control: it was on
        attachment.remove()
        attachment.remove()
        assert hooks(model) == 0
        assert torch.equal(model(tokens(2, LENGTH)).logits, plain)

    def test_the_context_manager_removes(self) -> None:
        model = tiny_model("llama")
        with pytest.raises(RuntimeError, match="stop"), attach(model, sums=cubes()):
            raise RuntimeError("stop")
        assert hooks(model) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_detectors_change_nothing(self, kind: str) -> None:
        model = tiny_model(kind)
        plain = model(tokens(2, LENGTH)).logits
        with attach(model, one=cubes(), many=cubes(cube(0), cube(1), cube(1, seed=4))):
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
        several = (cube(2, seed=1), cube(0, seed=2), cube(2, seed=3, tau=0.5))
        with attach(model, sums=cubes(*several)) as attachment:
            readings = read(model, attachment, ids)
        wanted = [cube_score(keys(model, ids, c.layer), c.mean_F, 1 / c.std_F) for c in several]
        torch.testing.assert_close(readings.scores["sums"], torch.stack(wanted, dim=1))

    def test_one_cube_of_several_is_enough(self) -> None:
        model, ids = tiny_model("llama"), tokens(2, LENGTH)
        (inside,) = fitted(model, ids).cubes
        narrow = cube(0, tau=1e-6)
        for several, wanted in (((narrow, inside), Reading.INSIDE), ((narrow,), Reading.OUTSIDE)):
            with attach(model, sums=cubes(*several)) as attachment:
                assert bool((read(model, attachment, ids).codes_RG == wanted).all())

    def test_several_guards_keep_their_names_and_columns(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, LENGTH)
        guards = {"a": fitted(model, ids), "b": cubes(cube(1, tau=1e-6)), "c": fitted(model, ids, layer=0)}
        with attach(model, **guards) as attachment:
            readings = read(model, attachment, ids)
        assert readings.names == ("a", "b", "c")
        assert readings.codes_RG[0].tolist() == [Reading.INSIDE, Reading.OUTSIDE, Reading.INSIDE]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_equals_one_by_one(self, kind: str) -> None:
        model, ids = tiny_model(kind), tokens(3, LENGTH)
        with attach(model, sums=cubes(cube(0), cube(2))) as attachment:
            together = read(model, attachment, ids).scores["sums"].view(3, LENGTH, 2)
            alone = [read(model, attachment, row[None]).scores["sums"] for row in ids]
        # Matrix products of other shapes sum in other orders: float32's rounding, nothing else.
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)

    def test_picked_rows_equal_all_rows(self) -> None:
        model, ids = tiny_model("llama"), tokens(1, 9)
        rows = torch.tensor([2, 8, 5])
        with attach(model, sums=cubes(), shift=neuron_adjust()) as attachment:
            everything = read(model, attachment, ids)
            logits = model(input_ids=ids, logits_to_keep=rows).logits
            picked = take(attachment, 3)
            assert logits.shape[1] == 3
        assert torch.equal(picked.codes_RG, everything.codes_RG[rows])
        for name in ("sums", "shift"):
            torch.testing.assert_close(picked.scores[name], everything.scores[name][rows])

    @pytest.mark.parametrize("count", [1, 3, 9])
    def test_the_last_rows_of_each_sequence_are_those_of_its_logits(self, count: int) -> None:
        """As transformers' own `generate` asks for them, of a batch."""
        model, ids = tiny_model("llama"), tokens(2, 5)
        with attach(model, sums=cubes(), shift=neuron_adjust()) as attachment:
            everything = read(model, attachment, ids)
            kept = model(input_ids=ids, logits_to_keep=count).logits.shape[1]
            picked = take(attachment, 2 * kept)
        rows = torch.arange(10).view(2, 5)[:, -kept:].flatten()
        assert kept == min(count, 5)
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
        guards: dict[str, Guard] = {"sums": cubes(cube(0), cube(2)), "shift": neuron_adjust(Draw.RANDOM)}
        with attach(model, **guards) as attachment:
            model(input_ids=packed, attention_mask=mask, position_ids=positions, logits_to_keep=last)
            together = take(attachment, 3)
            alone = []
            for prompt in prompts:
                model(input_ids=prompt, logits_to_keep=torch.tensor([prompt.shape[1] - 1]))
                alone.append(take(attachment, 1))
        for name in guards:
            wanted = torch.cat([readings.scores[name] for readings in alone])
            torch.testing.assert_close(together.scores[name], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(together.codes_RG, torch.cat([readings.codes_RG for readings in alone]))
