"""What holds of every method's guards: stored, bound, and in slices over ranks.

Suffixes: T tokens, F width of a site, C columns at a place.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact, write_artifact
from guards.calibration.entry import Entry
from guards.contract.guard import Bound, Column, OverRanks, Part, columns_at, detectors, interventions
from guards.core.verdict import GuardKind
from guards.methods.registry import CUBE, NEURON_ADJUST, SELECTIVE_PRUNING, load_guard, method_of
from guards.model.shard import WHOLE, Shard
from guards.model.sites import SITES, End, Place, Site, Width
from tests.guards.samples import (
    SAMPLES,
    cube,
    cubes,
    each_entry,
    files,
    neuron_adjust,
    pruned,
    write,
    write_raw,
)
from tests.models import D_FF, D_MODEL

CPU = torch.device("cpu")
WIDTHS = {Width.D_FF: D_FF, Width.D_ATTENTION: D_MODEL, Width.D_MODEL: D_MODEL}
SHIPPED = sorted((Path(__file__).parents[3] / "artifacts" / "demo" / "guards").iterdir())


def bound(entry: Entry, shard: Shard = WHOLE) -> Bound:
    return entry.bind(SAMPLES[entry](), CPU, shard)


def places(of: Bound) -> list[Place]:
    return sorted({column.place for column in of.columns})


def width(place: Place) -> int:
    return WIDTHS[SITES[place.site].width]


def vectors(place: Place) -> Tensor:
    """What a guard reads at a place."""
    return torch.randn(6, width(place), generator=torch.Generator().manual_seed(place.layer))


class Said(NamedTuple):
    """Columns at a place, and what a guard acted on: what it read, or what the module gives beside that."""

    columns_TC: Tensor
    before: Tensor
    after: Tensor


ON = torch.ones(6, dtype=torch.bool)


def act(of: Bound, place: Place, x_TF: Tensor, *, on_T: Tensor = ON, whole: int = 0) -> Said:
    """What a guard does at a place. `whole`: the width over all ranks where x is one's slice."""
    run = of.at(place, whole or x_TF.shape[1])
    both = SITES[place.site].end is End.BOTH
    acted = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(7)).to(x_TF.dtype) if both else x_TF
    before, switch = acted.clone(), () if of.health is None else (on_T,)
    return Said(run(acted, torch.arange(6), *switch, *((x_TF,) if both else ())), before, acted)


@each_entry
def test_a_guard_survives_the_disk(tmp_path: Path, entry: Entry) -> None:
    parameters, tensors = entry.dump(SAMPLES[entry]())
    artifact = read_artifact(write_raw(tmp_path / "a", entry.name, parameters, dict(tensors)))
    assert method_of(artifact) is entry
    loaded = load_guard(artifact)
    assert type(loaded) is type(SAMPLES[entry]())
    again, tensors_again = entry.dump(loaded)
    assert again == parameters
    assert tensors.keys() == tensors_again.keys()
    assert all(torch.equal(tensors[name], tensors_again[name]) for name in tensors)


@pytest.mark.real
@pytest.mark.parametrize("folder", SHIPPED, ids=[folder.name for folder in SHIPPED])
def test_a_shipped_guard_read_and_dumped_again_keeps_its_bytes(tmp_path: Path, folder: Path) -> None:
    artifact = read_artifact(folder)
    parameters, tensors = method_of(artifact).dump(load_guard(artifact))
    assert parameters == artifact.manifest.parameters
    record = artifact.manifest.model_copy(update={"parameters": parameters})
    assert write_artifact(tmp_path / folder.name, record, tensors) == artifact.digest
    assert files(tmp_path / folder.name) == files(folder)


def test_there_are_shipped_guards() -> None:
    assert {folder.name for folder in SHIPPED} >= {"ksd-mathematics", "na-mathematics"}


@each_entry
def test_its_folder_has_what_an_entry_promises(entry: Entry) -> None:
    wanted = {
        "stored": ("load", "dump", "bind"),
        "calibrate": ("sites", "calibrate"),
        "shown": ("table", "report", "plots"),
    }
    for file, functions in wanted.items():
        module = entry.module(file)
        assert all(callable(getattr(module, name)) for name in functions)
    assert entry.options().frames == ()
    assert entry.sites(entry.options())
    assert entry.summary


@each_entry
def test_a_detector_has_a_tau_for_each_part_and_an_intervention_a_health(entry: Entry) -> None:
    each = bound(entry)
    detects = entry.kind is GuardKind.DETECTOR
    assert len(each.taus) == (len(each.parts) if detects else 0)
    assert (each.health is None) is detects
    assert (detectors({"a": each}), interventions({"a": each})) == (({"a": each}, {}) if detects else ({}, {"a": each}))


@each_entry
def test_its_layers_are_those_of_its_columns(entry: Entry) -> None:
    each, guard = bound(entry), SAMPLES[entry]()
    assert guard.layers == tuple(sorted({column.place.layer for column in each.columns}))
    for index, part in enumerate(each.parts):
        assert part.layers == tuple(sorted({c.place.layer for c in each.columns if c.part == index}))


@each_entry
def test_it_says_float32_columns_of_every_token(entry: Entry) -> None:
    each = bound(entry)
    for place in places(each):
        for dtype in (torch.float32, torch.bfloat16):
            said_TC = act(each, place, vectors(place).to(dtype)).columns_TC
            assert said_TC.dtype is torch.float32
            assert said_TC.shape == (6, len(columns_at(each.columns, place)))
            assert bool(torch.isfinite(said_TC).all())


@each_entry
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_said_of_its_token_alone(entry: Entry, bad: float) -> None:
    each = bound(entry)
    for place in places(each):
        x_TF = vectors(place)
        x_TF[2] = bad
        said_TC = act(each, place, x_TF).columns_TC
        assert torch.isfinite(said_TC).any(dim=1).tolist() == [True, True, False, True, True, True]
        assert torch.isfinite(said_TC).all(dim=1).tolist() == [True, True, False, True, True, True]


@each_entry
def test_what_an_intervention_leaves_is_finite_or_said_not_to_be(entry: Entry) -> None:
    """Of numbers near the largest of float16, which a change may exceed."""
    each, overflowed = bound(entry), False
    for place in places(each) if entry.kind is GuardKind.INTERVENTION else ():
        said = act(each, place, (6e4 * vectors(place).sign()).half())
        assert bool(torch.isfinite(said.before).all())
        broken_T = ~torch.isfinite(said.after).all(dim=1)
        assert bool(said.columns_TC[broken_T].isnan().all())
        overflowed |= bool(broken_T.any())
    moving = {column.place.site for column in each.columns} & {Site.RESIDUAL, Site.OUTPUT}
    assert overflowed is (entry.kind is GuardKind.INTERVENTION and bool(moving)), "positive control"


@each_entry
def test_a_detector_leaves_the_activations_and_an_intervention_changes_them(entry: Entry) -> None:
    each = bound(entry)
    for place in places(each):
        said = act(each, place, vectors(place))
        changed_T = (said.after != said.before).any(dim=1)
        if entry.kind is GuardKind.DETECTOR:
            assert not bool(changed_T.any())
        else:
            assert bool(changed_T.any())
            assert torch.equal(changed_T, (said.columns_TC != 0).any(dim=1)), "its health says where it acted"


@each_entry
def test_an_intervention_leaves_the_tokens_for_which_it_is_off(entry: Entry) -> None:
    each, on_T = bound(entry), torch.tensor([True, False, True, False, False, True])
    for place in places(each) if entry.kind is GuardKind.INTERVENTION else ():
        everywhere, some = act(each, place, vectors(place)), act(each, place, vectors(place), on_T=on_T)
        assert torch.equal(some.after, torch.where(on_T[:, None], everywhere.after, everywhere.before))
        assert torch.equal(some.columns_TC, torch.where(on_T[:, None], everywhere.columns_TC, 0))
        bad_TF = vectors(place)
        bad_TF[1] = torch.nan
        assert not bool(torch.isfinite(act(each, place, bad_TF, on_T=on_T).columns_TC[1]).any()), "read all the same"


@each_entry
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_say_and_do_what_one_does(entry: Entry, ranks: int) -> None:
    whole, shards = bound(entry), [Shard(rank, ranks) for rank in range(ranks)]
    for place in places(whole):
        x_TF, columns = vectors(place), [whole.columns[i] for i in columns_at(whole.columns, place)]
        split = SITES[place.site].split
        slices = [x_TF[:, shard.columns(width(place)) if split else slice(None)].clone() for shard in shards]
        wanted = act(whole, place, x_TF)
        wanted_TC = wanted.columns_TC
        said = [
            act(bound(entry, shard), place, slice_TF, whole=width(place))
            for shard, slice_TF in zip(shards, slices, strict=True)
        ]
        said_NTC = torch.stack([each.columns_TC for each in said])
        for c, column in enumerate(columns):
            assert (column.over_ranks is OverRanks.SAME) is not split, "each rank has all of what is not split"
            joined_NT = said_NTC[:, :, c]
            joined_T = joined_NT.sum(dim=0) if column.over_ranks is OverRanks.SUM else joined_NT.amax(dim=0)
            torch.testing.assert_close(joined_T, wanted_TC[:, c], rtol=1e-5, atol=1e-5)
        if SITES[place.site].end is End.BOTH:
            added = sum(each.after - each.before for each in said)
            torch.testing.assert_close(added, wanted.after - wanted.before, rtol=1e-5, atol=1e-5)
        else:
            assert all(torch.equal(each, x_TF) for each in ([torch.cat(slices, dim=1)] if split else slices))


def test_bound_guards_describe_their_parts(tmp_path: Path) -> None:
    guard = load_guard(read_artifact(write(tmp_path / "a", guard=cubes(cube(2, frame="chat"), cube(0), cube(2)))))
    several = CUBE.bind(guard, CPU, WHOLE)
    assert guard.layers == (0, 2)
    assert several.parts == (Part("chat", (2,)), Part("bare", (0,)), Part("bare", (2,)))
    assert several.columns == tuple(
        Column(Place(layer, Site.KEY), part, OverRanks.MAX) for part, layer in enumerate((2, 0, 2))
    )
    assert list(several.taus) == [3, 3, 3]

    shift = NEURON_ADJUST.bind(load_guard(read_artifact(write(tmp_path / "c", NEURON_ADJUST))), CPU, WHOLE)
    assert shift.parts == (Part("", neuron_adjust().layers),) == (Part("", (0, 2)),)
    assert shift.columns == tuple(Column(Place(layer, Site.PRE_ACTIVATION), 0, OverRanks.SUM) for layer in (0, 2))

    mask = SELECTIVE_PRUNING.bind(pruned(), CPU, WHOLE)
    assert mask.parts == (Part("", (0, 1, 2)),)
    assert places(mask) == [
        *(Place(0, Site.ATTENTION), Place(0, Site.KEY)),
        *(Place(1, Site.ATTENTION), Place(2, Site.KEY)),
    ]
    assert {(column.part, column.over_ranks) for column in mask.columns} == {(0, OverRanks.SUM)}
    for acting in (shift, mask):
        assert acting.health is not None
        assert acting.health.unit == "neurons"
