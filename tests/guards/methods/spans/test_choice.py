"""Which texts decide tau, and that no value is taken that served would be an error."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from guards.calibration.activations import Consumer, Pass, TokenIds
from guards.calibration.corpus import Share, Side
from guards.calibration.options import PlacementName
from guards.calibration.thresholds import tolerated
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.methods.spans.choice import EVERY, Accumulation, _limits, _reached, accumulate, judgements
from guards.methods.spans.examples import Example, SpanJob
from guards.methods.spans.guard import Judgement, LayerWeights
from guards.methods.spans.held import Held
from guards.methods.spans.options import SpanOptions
from guards.methods.spans.passes import read_values
from guards.methods.spans.recipe import LAST_TOKEN, STRETCHES, Aggregation

TOKENS = 8
CAP = 0.1
IDS = tuple(range(TOKENS))
WAY = (Rise(0.5, False), MessageMean(3, False))


def example(side: Side, source: str) -> Example:
    return Example(IDS, side, Share.THRESHOLD, source, "chat")


def texts(outliers: int) -> list[tuple[Example, float]]:
    """Of 240 retain texts of six sources, `outliers` of one are as much the skill as a text can be."""
    sides = [(example("forget", "sums"), 0.0)] * 40
    sides += [(example("retain", f"source {number}"), 1.0) for number in range(5) for _ in range(40)]
    return sides + [(example("retain", "mixed"), -2.0 if number < outliers else 1.0) for number in range(40)]


def held(sides: Sequence[tuple[Example, float]]) -> Held:
    """Each text has its value at every token."""
    every_T, none_T = torch.ones(TOKENS, dtype=torch.bool), torch.zeros(TOKENS, dtype=torch.bool)
    values = [torch.full((TOKENS,), value) for _, value in sides]
    return Held([each for each, _ in sides], [Turns(every_T, none_T, none_T, none_T)] * len(sides), values)


def decided(outliers: int, of: Aggregation = STRETCHES) -> Accumulation:
    """What is chosen by these texts."""
    given = held(texts(outliers))
    options = SpanOptions(max_false_abstention=CAP)
    return accumulate(given.examples, given.values, given.turns, options, of.ways(False), written=False)


def fires(served: Sequence[Judgement], outliers: int) -> int:
    """How many of the retain texts of the source that has outliers."""
    mixed = held([each for each in texts(outliers) if each[0].source == "mixed"])
    return sum(bool(margin_T[-1] >= 1) for margin_T in mixed.margins(served))


@pytest.mark.parametrize("outliers", [0, 5, 10, 40])
@pytest.mark.parametrize("placement", ["tight", "middle"])
def test_what_is_served_fires_on_no_more_of_a_source_than_its_limit_says(
    outliers: int, placement: PlacementName
) -> None:
    """However near to the skill they are: evidence of a mean above what a tau can ask for is not cut to that."""
    served = judgements(decided(outliers), placement)
    assert fires(served, outliers) <= tolerated(40, CAP)
    assert len(served) == (1 if outliers >= 10 else 2)
    if outliers > 8:
        cut = [Judgement(MessageMean(3, False), 0.1)]
        assert fires(cut, outliers) == outliers, "positive control"


def test_where_no_tau_keeps_the_cap_there_is_no_guard() -> None:
    assert len(judgements(decided(5, LAST_TOKEN), "middle")) == 1, "positive control"
    assert set(decided(10, LAST_TOKEN).recalls.values()) == {0.0}
    with pytest.raises(CalibrationError, match="mixed are as near to the skill as its own mean"):
        judgements(decided(10, LAST_TOKEN), "middle")


@pytest.mark.parametrize("outliers", [0, 1, 5])
def test_a_few_outliers_of_a_small_source_decide_nothing(outliers: int) -> None:
    found = decided(outliers)
    assert found.decided != "mixed"
    assert set(found.recalls.values()) == {1.0}


def test_a_source_that_contradicts_the_cap_decides_and_is_named() -> None:
    """Though all retain texts together would keep it."""
    found = decided(10)
    assert found.decided == "mixed"
    assert set(found.recalls.values()) == {0.0}


def test_all_retain_texts_together_decide_where_no_source_contradicts() -> None:
    assert decided(0).decided == EVERY


def test_a_kind_that_cannot_be_had_costs_the_others_nothing() -> None:
    """The recall is that of all kinds alike, and so is the room that taus are placed in."""
    hard, easy = torch.full((50,), 0.2), torch.linspace(1.0, 3.0, 101)
    margin_E = torch.cat([hard, easy])
    groups = {"hard": list(range(50)), "easy": list(range(50, 151))}
    assert _reached(margin_E, groups, 0.98) == pytest.approx(0.2)
    assert _reached(margin_E, groups, 0.45) == pytest.approx(1.2, abs=0.05), "a tenth of the easy kind may be missed"
    one = {"hard": [0], "easy": list(range(1, 102))}
    assert _reached(torch.cat([hard[:1], easy]), one, 0.45) == pytest.approx(1.2, abs=0.05), "however few it has"


@pytest.mark.parametrize("seed", range(20))
def test_the_taus_that_are_served_keep_the_cap(seed: int) -> None:
    """Of stretch and mean as one, on the very texts that set them, whatever is rounded on the way."""
    evidence_E2 = torch.randn(999, 2, generator=torch.Generator().manual_seed(seed)).abs() * torch.tensor([9.0, 0.3])
    limits, _ = _limits(evidence_E2, WAY, {}, CAP)
    of = Accumulation(WAY, limits, "a", {"all": 0.5}, 0.5, 999)
    rise, mean = (each.tau for each in judgements(of, "middle"))
    fires_E = (1 / (1 + evidence_E2[:, 0]) <= rise) | (1 - evidence_E2[:, 1] <= mean)
    assert int(fires_E.sum()) in (98, 99), "split conformal: a tenth of a thousand, less one, or two that lie together"


def quality_of(margin: float, *recalls: float) -> tuple[float, float, float]:
    kinds = {str(index): recall for index, recall in enumerate(recalls)}
    return Accumulation(WAY, (4.0, 0.2), "a", kinds, margin, 99).quality


def test_what_is_chosen() -> None:
    assert quality_of(0.5, 0.6, 1.0) > quality_of(0.9, 0.7, 0.8), "more recall of all kinds"
    assert quality_of(0.5, 0.7, 0.9) > quality_of(0.9, 0.6, 1.0), "of equals the one whose hardest kind is caught most"
    assert quality_of(1.5, 0.98, 1.0) > quality_of(1.2, 1.0, 1.0), "room, once the recall that is wanted is had"
    assert quality_of(1.0, 0.98, 0.98) > quality_of(0.999, 0.99, 0.97), "just short of it is short of it"


class Overflowing:
    """Hands over one key vector with an infinity, at the last token of the last example."""

    def stream(
        self, wanted: Pass, examples: Sequence[TokenIds], consume: Consumer, advance: Callable[[int], object]
    ) -> None:
        key_TF = torch.ones(TOKENS * len(examples), 3)
        key_TF[-1, 1] = torch.inf
        consume(wanted.layers[0], key_TF, torch.arange(len(examples)).repeat_interleave(TOKENS))


@pytest.mark.parametrize("weight_F", [torch.ones(3), torch.tensor([1.0, 0.0, 1.0])])
def test_a_value_that_is_not_finite_is_no_text_that_does_not_fire(weight_F: Tensor) -> None:
    job = SimpleNamespace(model=Overflowing(), layers=(2,), options=SimpleNamespace(batch_tokens=None, site="key"))
    examples = [example("retain", "a"), example("retain", "b")]
    with pytest.raises(CalibrationError, match="not finite"):
        read_values(cast(SpanJob, job), examples, [(LayerWeights(2, weight_F, 0.0),)], lambda *_: None)
