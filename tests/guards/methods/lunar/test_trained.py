"""The trained variant of LUNAR: its optimum is the closed form, and what it makes is served as any delta.

Suffixes: T tokens, F feed-forward width, D the residual stream's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.artifact.store import read_artifact
from guards.calibration.activations import Pass, Tokens
from guards.calibration.tuning import Example
from guards.errors import ArtifactError, ArtifactMismatchError, CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.delta import Factors
from guards.methods.lunar.calibrate import calibrate as calibrate_lunar
from guards.methods.lunar.guard import LunarGuard, RidgeSums, redirection
from guards.methods.lunar.options import LunarOptions
from guards.methods.lunar_trained.calibrate import CLOSED_FORM
from guards.methods.lunar_trained.objective import Redirection, token_ratio
from guards.methods.lunar_trained.options import TrainedOptions
from guards.methods.registry import LUNAR, LUNAR_TRAINED, load_guard, method_of
from guards.methods.rmu.calibrate import RmuCalibration
from guards.methods.rmu.training import Schedule, Sides, Step, Training
from guards.model.sites import Site
from tests.guards.samples import lunar, write
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements
from tests.models import D_FF, D_MODEL, tokens

F, D, FORGET, RETAIN = 12, 5, 40, 120
TOLERANCE = 1e-5
"""Of the difference's length over the closed form's: float32's rounding, where Adam sees all tokens in every step."""


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Opened:
    before: Mapping[int, Tensor]
    k_TF: Tensor
    delta_DF: Tensor

    def after(self) -> Mapping[int, Tensor]:
        return {0: self.before[0] + self.k_TF @ self.delta_DF.T}


class Projection:
    """A down projection by itself, as the paper trains it: an example's token ids are rows of key vectors."""

    def __init__(self) -> None:
        self.k_TF, self._weight_DF = drawn(FORGET + RETAIN, F, 1), drawn(D, F, 2)
        self.k_TF[:FORGET] += 0.5
        self.deltas = {0: nn.Parameter(torch.zeros(D, F))}

    def open(self, _: Sequence[int], examples: Sequence[Example]) -> Opened:
        k_TF = self.k_TF[torch.tensor([token for ids, first in examples for token in ids[first:]])]
        return Opened({0: k_TF @ self._weight_DF.T}, k_TF, self.deltas[0])

    def closed_form(self, r_D: Tensor) -> Tensor:
        """Of a ridge that is nearly none, [D, F]."""
        sums = RidgeSums(F, torch.device("cpu"))
        sums.update(self.k_TF[:FORGET], forget=True)
        sums.update(self.k_TF[FORGET:], forget=False)
        each = redirection(r_D, sums.solve((1e-9,))[0], strength=2.0, usual=1.0)
        return each.b_DR @ each.a_RF


ALL = Sides((Example(tuple(range(FORGET)), 0),), (Example(tuple(range(FORGET, FORGET + RETAIN)), 0),))
R_D = drawn(1, D, 3)[0]


def apart(steps: int, weight: float) -> float:
    """How far a training on all tokens ends from the closed form, over that one's length."""
    projection = Projection()
    schedule = Schedule(steps=steps, batch=1, rate=1e-2, alpha=1.0)
    Training(projection, Redirection(0, 2.0 * R_D, weight), ALL, schedule).run()
    closed_DF = projection.closed_form(R_D)
    return float((projection.deltas[0].detach() - closed_DF).norm() / closed_DF.norm())


def test_the_trained_optimum_is_the_closed_form() -> None:
    """Of both sides' tokens, each of which counts alike."""
    assert token_ratio(ALL) == RETAIN / FORGET
    assert apart(300, token_ratio(ALL)) < TOLERANCE
    assert apart(300, 1.0) > 0.1, "positive control: of sides that weigh alike the optimum is another"
    assert apart(20, token_ratio(ALL)) > 0.1, "positive control: so is what few steps reach"


SHORT_AND_LONG = Sides(
    (Example(tuple(range(5)), 0), Example(tuple(range(5, FORGET)), 0)),
    tuple(Example(tuple(range(FORGET + first, FORGET + stop)), 0) for first, stop in ((0, 60), (60, 65), (65, 120))),
)


def expected_gradient(*, by_token: bool) -> float:
    """At the closed form, over what it is without a change: the mean of all batches of one example a side."""
    projection, found = Projection(), []
    ratio = token_ratio(SHORT_AND_LONG)
    for delta_DF in (projection.closed_form(R_D), torch.zeros(D, F)):
        projection.deltas[0].data.copy_(delta_DF)
        gradients: list[Tensor] = []

        def keep(_: Step, into: list[Tensor] = gradients) -> None:
            assert projection.deltas[0].grad is not None
            into.append(projection.deltas[0].grad.double())

        objective = Redirection(0, 2.0 * R_D, ratio, by_token=by_token)
        schedule = Schedule(steps=6, batch=1, rate=0.0, alpha=1.0)
        Training(projection, objective, SHORT_AND_LONG, schedule).run(keep)
        found.append(float(torch.stack(gradients).mean(dim=0).norm()))
    return found[0] / found[1]


def test_in_batches_of_unequal_examples_the_closed_form_is_the_optimum_too() -> None:
    assert Redirection(0, R_D, 1.0).by_token
    assert expected_gradient(by_token=True) < 1e-5
    assert expected_gradient(by_token=False) > 0.05, "positive control: a token weighs by how many are beside it"


def test_a_block_adds_what_the_delta_gives() -> None:
    """So its losses on the residual stream are the paper's on the projection's outputs."""
    loaded, ids = tiny_loaded(), tuple(tokens(6).tolist())
    kept: list[Tensor] = []
    wanted = Pass(Site.KEY, (1,), Tokens.ALL)
    loaded.stream(wanted, [ids], lambda _, k_TF, __: kept.append(k_TF))
    push_D = drawn(1, D_MODEL, 5)[0]
    with loaded.tuned((1,)) as tuned, torch.no_grad():
        tuned.deltas[1].copy_(drawn(D_MODEL, D_FF, 4))
        given_TD = kept[0] @ tuned.deltas[1].T
        opened = tuned.open((1,), [Example(ids, 0)])
        before, after = opened.before, opened.after()
        torch.testing.assert_close(after[1] - before[1], given_TD, rtol=1e-4, atol=1e-4)
        objective = Redirection(1, push_D, 3.0)
        forget, retain = objective.forget(after, before), objective.retain(after, before)
    assert float(forget) == pytest.approx(float((given_TD - push_D).square().mean()), rel=1e-4)
    assert float(retain) == pytest.approx(3 * float(given_TD.square().mean()), rel=1e-4)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_position_embeddings=256)


@pytest.fixture(scope="module")
def change(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("changes") / "lunar-sums"
    options = LunarOptions(material="none", layer=1, ridge=1e-4, asked=2, asked_tokens=2)
    calibrate_lunar(loaded, *sources(60), options).save(folder, "sums")
    return folder


def calibrated(loaded: LoadedModel, change: Path | None, count: int = 60, **changes: Any) -> RmuCalibration:
    options = TrainedOptions(**{"change": change, "material": "none", "rate": 1e-1, "batch": 10, **changes})
    made = LUNAR_TRAINED.calibrate(loaded, *sources(count), options)
    assert isinstance(made, RmuCalibration)
    return made


@pytest.fixture(scope="module")
def trained(loaded: LoadedModel, change: Path) -> RmuCalibration:
    return calibrated(loaded, change, steps=60)


def test_it_does_on_held_out_texts_what_the_closed_form_does(trained: RmuCalibration, change: Path) -> None:
    none, served, whole = trained.measured
    closed = trained.beside[CLOSED_FORM]
    assert whole.forget < 0.6 * none.forget
    for loss, other in ((served.forget, closed.forget), (served.retain, closed.retain)):
        assert loss == pytest.approx(other, rel=0.05), "on texts that neither saw"
    assert closed.cosine > 0.99, "60 steps of some of the texts, and a ridge of 1e-4, apart"
    assert trained.history[0].forget > 2 * trained.history[-1].forget, "positive control: it had a way to go"
    assert trained.guard.layers == tuple(load_guard(read_artifact(change)).layers)
    assert not any("was calibrated with" in each for each in trained.warnings)


def test_its_artifact_verifies_and_tells_a_weaker_guard(
    loaded: LoadedModel, trained: RmuCalibration, tmp_path: Path
) -> None:
    trained.save(tmp_path / "trained", "sums")
    artifact = read_artifact(tmp_path / "trained")
    assert method_of(artifact) is LUNAR_TRAINED
    guard = load_guard(artifact)
    assert isinstance(guard, LunarGuard)
    assert (guard.reference, guard.strength, guard.ridge) == ("unanswerable", 2.0, None)
    ((layer, each),) = guard.deltas.items()
    rank = trained.chosen.rank
    assert (layer, each.a_RF.shape, each.b_DR.shape) == (1, (rank, D_FF), (D_MODEL, rank))
    assert each.a_RF.dtype is each.b_DR.dtype is torch.bfloat16
    canaries = artifact.manifest.canaries
    assert disagreements(loaded, LUNAR_TRAINED, guard, canaries) == []
    weaker = LunarGuard({layer: Factors(each.a_RF * 0.5, each.b_DR, each.usual)}, "unanswerable", 2.0, None)
    assert disagreements(loaded, LUNAR_TRAINED, weaker, canaries) != [], "positive control"


def test_the_report_sets_the_closed_form_beside_it(trained: RmuCalibration) -> None:
    said = LUNAR_TRAINED.report(trained)
    assert said["beside"][CLOSED_FORM]["cosine"] == trained.beside[CLOSED_FORM].cosine
    assert len(said["steps"]) == 60
    caption = LUNAR_TRAINED.table(trained).caption
    assert caption is not None
    assert f"report part: {CLOSED_FORM} has {trained.beside[CLOSED_FORM].forget:.4g}" in caption
    notes = trained.record.notes
    assert any("those of lunar-sums, sha256:" in note for note in notes)
    assert any(note.startswith(f"{CLOSED_FORM} there: forget loss") for note in notes)


def test_a_state_is_that_of_a_training_towards_the_same_change(
    loaded: LoadedModel, change: Path, tmp_path: Path
) -> None:
    """Wherever that lies."""
    file, moved = tmp_path / "state", tmp_path / "moved" / change.name
    calibrated(loaded, change, steps=4, checkpoint=file)
    copytree(change, moved)
    other = tmp_path / "lunar-sums"
    options = LunarOptions(material="none", layer=1, ridge=1e-1, asked=2, asked_tokens=2)
    calibrate_lunar(loaded, *sources(60), options).save(other, "sums")
    with pytest.raises(DataError, match="the state of another training: got change "):
        calibrated(loaded, other, steps=6, checkpoint=file)
    assert len(calibrated(loaded, moved, steps=6, checkpoint=file).history) == 6


def test_other_examples_than_the_changes_are_warned_of(loaded: LoadedModel, change: Path) -> None:
    found = calibrated(loaded, change, count=40, steps=4, seed=1)
    for said in ("lunar-sums was calibrated with other examples", "lunar-sums was calibrated with seed 0, wanted 1"):
        assert any(said in each for each in found.warnings)
        assert any(said in note for note in found.record.notes), "an artifact says so itself"


def test_what_is_no_change_of_this_model_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="got no `change`, wanted an artifact of the variant redirect"):
        calibrated(loaded, None)
    with pytest.raises(ArtifactError, match="got method 'ksd', variant 'paper', wanted 'lunar', 'redirect'"):
        calibrated(loaded, write(tmp_path / "ksd"))
    with pytest.raises(ArtifactError, match="got method 'lunar', variant 'trained', wanted 'lunar', 'redirect'"):
        calibrated(loaded, write(tmp_path / "trained", LUNAR_TRAINED))
    with pytest.raises(ArtifactMismatchError, match="was calibrated on another model"):
        calibrated(loaded, write(tmp_path / "lunar", LUNAR, lunar()))
