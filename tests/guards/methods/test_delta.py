"""Low-rank changes beside weights: stored, folded, read, and switched by row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.artifact.store import read_artifact
from guards.contract.columns import Columns
from guards.core.verdict import Reading
from guards.errors import ArtifactError, AttachError, GuardReadingError
from guards.inside.transformers.sites import find_sites
from guards.methods.delta import BoundDelta, Factors, FactorsRecord, dump_deltas, take_deltas
from guards.methods.lunar.guard import LunarGuard
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.attached import KINDS, LENGTH, attach, keys, read, take
from tests.guards.model.test_sites import weight
from tests.guards.samples import cube, cubes, factors, pruned, write_raw
from tests.models import D_FF, D_MODEL, LAYERS, tiny_model, tokens

SEVERAL = {0: factors(3, seed=1), 2: factors(2, seed=2)}
"""Several layers, of several ranks."""


def several() -> LunarGuard:
    """Whatever method made them, they are served alike."""
    return LunarGuard(SEVERAL, "unanswerable", 2.0, 1e-3)


def fold(model: nn.Module) -> None:
    """The same change in the weights themselves."""
    sites = find_sites(model)
    for layer, each in SEVERAL.items():
        module = sites.tap(Place(layer, Site.OUTPUT)).module
        change_DF = each.b_DR @ each.a_RF
        weight(module).add_(change_DF)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_equals_the_folded_weights(kind: str) -> None:
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    plain = model(input_ids=ids).logits
    with attach(model, change=several()) as attachment:
        branched = model(input_ids=ids).logits
        take(attachment, 2 * LENGTH)
    assert torch.equal(model(input_ids=ids).logits, plain), "the guard is off again"
    fold(model)
    torch.testing.assert_close(branched, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(branched, plain, atol=1e-3)  # positive control


@torch.no_grad()
def test_sequences_of_one_batch_have_the_model_that_each_would_have_alone() -> None:
    model, ids = tiny_model("llama"), tokens(3, LENGTH)
    names, off = ("change", "mask"), [{"change"}, set[str](), {"change", "mask"}]
    with attach(model, change=several(), mask=pruned()) as attachment:
        alone = []
        for row, of in zip(ids, off, strict=True):
            attachment.switch([(LENGTH, of)])
            alone.append(model(input_ids=row[None]).logits)
            attachment.take(LENGTH)
        attachment.switch([(LENGTH, of) for of in off])
        mixed = model(input_ids=ids).logits
        readings = take(attachment, 3 * LENGTH)
        everywhere = model(input_ids=ids).logits
        acting = take(attachment, 3 * LENGTH)
    torch.testing.assert_close(mixed, torch.cat(alone))
    for name in names:
        acted_SL = readings.scores[name].reshape(3, LENGTH) > 0
        assert acted_SL.tolist() == [[name not in of] * LENGTH for of in off]
    assert bool((acting.scores["change"] > 0).all()), "what was said is of one pass alone"
    assert not torch.allclose(mixed[0], everywhere[0], atol=1e-3)  # positive control
    assert torch.equal(model(input_ids=ids[2:]).logits, mixed[2:]) or torch.allclose(
        model(input_ids=ids[2:]).logits, mixed[2:], atol=1e-5
    ), "with all of them off it is the model as it was"


def test_a_pass_of_other_tokens_than_were_said_is_an_error() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, change=several()) as attachment:
        attachment.switch([(LENGTH - 1, {"change"})])
        with pytest.raises(GuardReadingError, match=rf"a pass of {LENGTH} tokens, and {LENGTH - 1} to switch"):
            model(input_ids=ids)


@torch.no_grad()
def test_it_reads_the_length_of_what_it_adds_along_the_strongest_way() -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    change = {layer: factors(seed=layer) for layer in (0, 2)}  # of rank one there is no other way
    with attach(model, change=LunarGuard(change, "unanswerable", 2.0, 1e-3)) as attachment:
        key = {layer: keys(model, ids, layer) for layer in change}
        take(attachment, LENGTH)
        read_T = read(model, attachment, ids).scores["change"][:, 0]
    squares = [
        ((key[layer] @ each.a_RF.T @ each.b_DR.T).norm(dim=1) / each.usual).square() for layer, each in change.items()
    ]
    torch.testing.assert_close(read_T, torch.stack(squares).sum(dim=0).sqrt())


def test_of_several_ways_it_reads_the_one_of_the_largest_singular_value() -> None:
    each = factors(3, seed=5)
    left, sizes, right = torch.linalg.svd(each.b_DR @ each.a_RF)
    torch.testing.assert_close(each.strongest().abs(), (sizes[0] * right[0]).abs())
    assert left.shape == (D_MODEL, D_MODEL)


@torch.no_grad()
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_broken_value_of_one_token_is_invalid_there(bad: float) -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)

    def break_one(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        x[0, 3, 5] = bad
        return (x,)

    find_sites(model).tap(Place(2, Site.KEY)).module.register_forward_pre_hook(break_one)
    for off in (set[str](), {"change"}):
        with attach(model, change=several()) as attachment:
            attachment.switch([(LENGTH, off)])
            model(input_ids=ids)
            codes = take(attachment, LENGTH).codes_RG[:, 0]
        assert codes.tolist() == [Reading.INVALID if row == 3 else Reading.OUTSIDE for row in range(LENGTH)]


@torch.no_grad()
def test_beside_pruning_and_a_detector_at_one_module() -> None:
    """Neurons that are gone are gone for the branch too, and the detector reads what both leave."""
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, mask=pruned(), change=several(), sums=cubes(cube(2))) as attachment:
        key_TF = keys(model, ids, 2)
        take(attachment, LENGTH)
        readings = read(model, attachment, ids)
    assert bool((key_TF[:, pruned().feed_forward[2]] == 0).all())
    assert bool((readings.scores["change"] > 0).all())
    assert bool((readings.codes_RG != Reading.MISSING).all())


def test_key_vectors_of_another_width_are_refused() -> None:
    bound = BoundDelta(SEVERAL, torch.device("cpu"), WHOLE)
    with pytest.raises(AttachError, match=rf"the model's key vectors are {D_FF + 2} long, not {D_FF}"):
        bound.at(Place(0, Site.OUTPUT), D_FF + 2)


def test_a_length_keeps_what_is_not_finite_and_does_not_cancel() -> None:
    columns = Columns({"change": BoundDelta(SEVERAL, torch.device("cpu"), WHOLE)})
    rows_RX = torch.tensor([[3.0, -4.0], [-3.0, 4.0], [torch.nan, 1.0], [torch.inf, 1.0], [0.0, 0.0]])
    assert columns.parts(rows_RX)[:, 0].tolist()[:2] == [5, 5]
    assert torch.isfinite(columns.parts(rows_RX)[:, 0]).tolist() == [True, True, False, False, True]


class TestStored:
    def artifact(self, folder: Path, deltas: dict[int, Factors], **changes: Any) -> Any:
        records, tensors = dump_deltas(deltas)
        return read_artifact(write_raw(folder / "a", "lunar", {}, {**tensors, **changes})), records

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_factors_survive_the_disk(self, tmp_path: Path, dtype: torch.dtype) -> None:
        wanted = {0: factors(3, seed=1, dtype=dtype), 2: factors(2, seed=2, dtype=dtype)}
        artifact, records = self.artifact(tmp_path, wanted)
        got, names = take_deltas(artifact, records)
        assert names == artifact.tensors.keys()
        assert got.keys() == wanted.keys()
        for layer, each in wanted.items():
            assert torch.equal(got[layer].a_RF, each.a_RF)
            assert torch.equal(got[layer].b_DR, each.b_DR)
            assert (got[layer].usual, got[layer].a_RF.dtype) == (each.usual, dtype)

    @pytest.mark.parametrize(
        ("records", "why"),
        [
            ((FactorsRecord(layer=LAYERS, rank=1, usual=1.0),), "above the model's"),
            ((FactorsRecord(layer=1, rank=1, usual=1.0),) * 2, "layer 1 twice"),
            (
                (FactorsRecord(layer=1, rank=D_MODEL + 1, usual=1.0),),
                rf"got rank {D_MODEL + 1}, wanted at most {D_MODEL}",
            ),
            ((FactorsRecord(layer=1, rank=2, usual=1.0),), r"tensor 'layer\.1\.a'"),
        ],
        ids=["no such layer", "twice", "too high a rank", "another rank"],
    )
    def test_records_that_do_not_fit_are_refused(
        self, tmp_path: Path, records: tuple[FactorsRecord, ...], why: str
    ) -> None:
        artifact, _ = self.artifact(tmp_path, {1: factors()})
        with pytest.raises(ArtifactError, match=why):
            take_deltas(artifact, records)

    def test_zeros_and_factors_of_two_formats_are_refused(self, tmp_path: Path) -> None:
        for name, value, why in (
            ("layer.1.b", torch.zeros(D_MODEL, 1), "zeros, which change nothing"),
            ("layer.1.b", factors().b_DR.bfloat16(), "got torch.bfloat16"),
            ("layer.1.a", torch.ones(1, D_FF, dtype=torch.int64), r"got factors of torch\.int64"),
        ):
            artifact, records = self.artifact(tmp_path, {1: factors()}, **{name: value})
            with pytest.raises(ArtifactError, match=why):
                take_deltas(artifact, records)

    def test_a_usual_length_above_zero(self) -> None:
        with pytest.raises(ValueError, match="above 0"):
            dump_deltas({1: replace(factors(), usual=0.0)})
