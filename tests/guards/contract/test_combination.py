"""Who changes what a guard reads: as computed from places, and as seen in a model's own passes.

Suffixes: S sequences, T tokens.
"""

from collections.abc import Mapping
from itertools import permutations

import pytest
import torch
from torch import Tensor

from guards.contract.combination import MOST_REACHING, beside
from guards.contract.guard import Guard
from guards.core.beside import Beside, switched
from guards.core.verdict import Scope
from guards.errors import AttachError
from guards.inside.transformers.sites import find_sites
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustGuard, adjust, layer_key
from guards.methods.selective_pruning.guard import Importance, PruningGuard
from guards.model.shard import WHOLE
from guards.model.sites import SITES, STEPS, End, Site
from tests.guards.attached import LENGTH, attach, entry, take
from tests.guards.samples import LAST_ALONE, factors, layer_statistics, lunar, projections, spans
from tests.models import D_FF, D_MODEL, LAYERS, tiny_model, tokens


def mask(site: Site, layer: int, *neurons: int) -> PruningGuard:
    chosen = {layer: torch.tensor(neurons or (1, 5, 9))}
    of_keys, of_attention = (chosen if each is site else {} for each in (Site.KEY, Site.ATTENTION))
    return PruningGuard(of_keys, of_attention, D_MODEL, 0.1, 0.1, 1, Importance.ABS)


def shift(layer: int, *neurons: int, seed: int = 7) -> NeuronAdjustGuard:
    return NeuronAdjustGuard({layer: layer_statistics(*(neurons or (1, 5, 9)))}, 0.1, Draw.CERTAIN, seed)


DETECTORS: Mapping[str, Guard] = {
    f"{site.value}-{layer}": spans(layer, judgements=LAST_ALONE, site=site)
    for site in SITES
    if site in (Site.ATTENTION, Site.KEY, Site.RESIDUAL)
    for layer in range(LAYERS)
}
"""One at each place that detectors read."""
ACTING: Mapping[str, Guard] = {
    **{
        f"mask-{site.value}-{layer}": mask(site, layer)
        for site in (Site.ATTENTION, Site.KEY)
        for layer in range(LAYERS)
    },
    **{f"shift-{layer}": shift(layer) for layer in range(LAYERS)},
    **{f"delta-{layer}": lunar(layer) for layer in range(LAYERS)},
    **{f"projection-{layer}": projections(layer) for layer in range(LAYERS)},
}
"""One at each place that interventions change."""


def computed(guards: Mapping[str, Guard]) -> dict[str, Beside]:
    methods = {name: entry(guard) for name, guard in guards.items()}
    return beside({name: of.bind(guard, torch.device("cpu"), WHOLE) for name, (of, guard) in methods.items()})


@torch.no_grad()
def seen(kind: str, guards: Mapping[str, Guard], change: str) -> set[str]:
    """Guards that read something else where that intervention is off, of those that are not it."""
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    scores: list[Mapping[str, Tensor]] = []
    with attach(model, **guards) as attachment:
        for off in (set[str](), {change}):
            attachment.switch([(2 * LENGTH, off)])
            model(input_ids=ids)
            scores.append(take(attachment, 2 * LENGTH).scores)
    return {name for name in guards if name != change and not torch.equal(scores[0][name], scores[1][name])}


@pytest.mark.parametrize("name", ACTING)
def test_a_detector_reads_something_else_exactly_where_it_is_said(name: str) -> None:
    guards: dict[str, Guard] = {**DETECTORS, name: ACTING[name]}
    said = {each for each, of in computed(guards).items() if of.changed_by}
    assert seen("llama", guards, name) == said
    assert seen("gpt_neox", guards, name) <= said, "attention beside the feed-forward network: fewer are reached"


@pytest.mark.parametrize("name", [each for each in ACTING if each.endswith("-1")])
def test_an_intervention_is_reached_only_where_it_is_said(name: str) -> None:
    found = set()
    for other, guard in ACTING.items():
        if other != name:
            for guards in ({name: ACTING[name], other: guard}, {other: guard, name: ACTING[name]}):
                reached = seen("llama", guards, name)
                assert reached <= {each for each, of in computed(guards).items() if of.changed_by == (name,)}
                found |= reached
    assert "delta-2" in found, "positive control: what a delta adds is a number that moves"


@pytest.mark.parametrize(
    ("guards", "wanted"),
    [
        pytest.param({"d": lunar(1), "k": spans(1)}, {"d": Beside(), "k": Beside()}, id="keys before the output"),
        pytest.param({"k": spans(1, 2), "d": lunar(1)}, {"k": Beside(("d",)), "d": Beside()}, id="one of two layers"),
        pytest.param(
            {"a": lunar(1), "b": lunar(1)}, {"a": Beside(), "b": Beside((), ("a",))}, id="two deltas of one layer"
        ),
        pytest.param(
            {"d": lunar(1), "m": mask(Site.KEY, 1)},
            {"d": Beside(("m",)), "m": Beside()},
            id="a delta's keys are masked",
        ),
        pytest.param(
            {"a": shift(1), "b": shift(1), "r": spans(2)},
            {"a": Beside(), "b": Beside(("a",), ("a",)), "r": Beside(("a", "b"))},
            id="in the order given",
        ),
        pytest.param(
            {"a": projections(1), "b": projections(1), "d": lunar(1), "r": spans(1, site=Site.RESIDUAL)},
            {"a": Beside(("d",)), "b": Beside(("a", "d"), ("a",)), "d": Beside(), "r": Beside(("a", "b", "d"))},
            id="projections behind a block's output",
        ),
        pytest.param(
            {"p": projections(0, 2), "k": spans(0), "later": spans(1), "d": lunar(1)},
            {"p": Beside(("d",)), "k": Beside(), "later": Beside(("p",)), "d": Beside(("p",))},
            id="a projection of two layers and a delta between them",
        ),
    ],
)
def test_what_guards_are_to_one_another(guards: Mapping[str, Guard], wanted: Mapping[str, Beside]) -> None:
    assert computed(guards) == wanted


def test_sites_are_in_the_order_of_a_pass() -> None:
    model, ran = tiny_model("llama"), list[Site]()
    for site, tap in find_sites(model).blocks[0].items():

        def run(*_: object, site: Site = site) -> None:
            ran.append(site)

        if tap.end is End.INPUT:
            tap.module.register_forward_pre_hook(run)
        else:
            tap.module.register_forward_hook(run)
    model(input_ids=tokens(1, LENGTH))
    assert ran == [*SITES] == [*STEPS]


def test_every_set_of_what_changes_it_with_all_off_first() -> None:
    sets = [*Beside(("a", "b")).sets_off()]
    assert sets == [{"a", "b"}, {"a"}, {"b"}, frozenset()]
    assert [*Beside().sets_off()] == [frozenset()]
    assert [switched(("a", "b"), off) for off in sets] == [
        ", with a and b off",
        ", with b on, with a off",
        ", with a on, with b off",
        ", with a and b on",
    ]


def test_more_than_are_verified_together_are_refused() -> None:
    some = {f"d{index}": lunar(0) for index in range(MOST_REACHING)}
    assert computed({**some, "k": spans(1)})["k"].changed_by == (*some,)
    with pytest.raises(AttachError, match=r"guard 'k': got 5 interventions .* wanted at most 4"):
        computed({**some, "one-more": lunar(0), "k": spans(1)})
    assert computed({**some, "one-more": lunar(0), "k": spans(0)}), "what reaches nobody is not counted"


@torch.no_grad()
def outputs(**guards: Guard) -> Tensor:
    model = tiny_model("llama")
    with attach(model, **guards) as attachment:
        logits: Tensor = model(input_ids=tokens(2, LENGTH)).logits
        take(attachment, 2 * LENGTH)
    return logits


def test_deltas_of_one_layer_add_up_in_any_order() -> None:
    one, other = factors(1, seed=1), factors(2, seed=2)
    deltas = {name: LunarGuard({1: each}, "unanswerable", 2.0, 1e-3) for name, each in (("a", one), ("b", other))}
    a_RF, b_DR = torch.cat([one.a_RF, other.a_RF]), torch.cat([one.b_DR, other.b_DR], dim=1)
    together = outputs(sum=LunarGuard({1: Factors(a_RF, b_DR, 1.0)}, "unanswerable", 2.0, 1e-3))
    for order in permutations(deltas):
        torch.testing.assert_close(outputs(**{name: deltas[name] for name in order}), together)
    for alone in deltas.values():
        assert not torch.allclose(outputs(alone=alone), together, atol=1e-3)  # positive control


def test_masks_are_their_union_in_any_order() -> None:
    masks = {"a": mask(Site.KEY, 1, 1, 5), "b": mask(Site.KEY, 1, 5, 9)}
    union = outputs(union=mask(Site.KEY, 1, 1, 5, 9))
    for order in permutations(masks):
        assert torch.equal(outputs(**{name: masks[name] for name in order}), union)
    assert not torch.equal(outputs(a=masks["a"]), union)  # positive control


@torch.no_grad()
def test_shifts_of_one_neuron_act_in_the_order_given() -> None:
    """The second sees what the first left; in the other order that is something else."""
    first, second = layer_statistics(1), layer_statistics(1)
    second.forget_mean_S.fill_(-0.5)
    guards = {
        name: NeuronAdjustGuard({0: each}, 0.1, Draw.CERTAIN, 7, Scope.BOTH)
        for name, each in (("first", first), ("second", second))
    }
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    read: list[Tensor] = []
    module = model.get_submodule("model.layers.0.mlp.gate_proj")
    plain: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: plain.append(out.reshape(-1, D_FF).clone()))
    model(input_ids=ids)
    handle.remove()
    wanted = {}
    for order in permutations(guards):
        x_TS = plain[0][:, [1]]
        for name in order:
            statistics = guards[name].layers_statistics[0]
            x_TS, _ = adjust(x_TS, statistics, positions_T=torch.arange(LENGTH), key=layer_key(0, 7), draw=Draw.CERTAIN)
        wanted[order] = x_TS
        with attach(model, **{name: guards[name] for name in order}) as attachment:
            handle = module.register_forward_hook(lambda _, __, out: read.append(out.reshape(-1, D_FF)[:, [1]].clone()))
            model(input_ids=ids)
            handle.remove()
            take(attachment, LENGTH)
        torch.testing.assert_close(read[-1], wanted[order])
    one, other = wanted.values()
    assert not torch.allclose(one, other)  # positive control
