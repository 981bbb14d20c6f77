"""LUNAR: the solve against the least squares that it stands for, and a calibration on a tiny model.

Suffixes: T tokens, F feed-forward width, D the residual stream's.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.errors import ArtifactError, CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.delta import Factors
from guards.methods.lunar.calibrate import LunarCalibration, calibrate
from guards.methods.lunar.guard import LunarGuard, RidgeSums, redirection
from guards.methods.lunar.options import LunarOptions
from guards.methods.registry import LUNAR, load_guard
from guards.model.sites import Site
from tests.guards.samples import factors, lunar, write, write_raw
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements

F, D, RIDGE = 12, 5, 1e-3
CPU = torch.device("cpu")


def side(tokens: int, seed: int, width: int = F) -> Tensor:
    """Key vectors within the first `width` dimensions."""
    return torch.nn.functional.pad(
        torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), (0, F - width)
    )


def solved(forget_TF: Tensor, retain_TF: Tensor, ridge: float = RIDGE) -> Tensor:
    sums = RidgeSums(F, CPU)
    for x_TF, forget in ((forget_TF, True), (retain_TF, False)):
        for part in torch.split(x_TF, 7):
            sums.update(part, forget=forget)
    return sums.solve((ridge,))[0]


def test_the_change_is_the_optimum_of_the_least_squares() -> None:
    """Of all changes of the weight, by a solver that knows nothing of the closed form."""
    forget_TF, retain_TF, r_D = side(40, 1) + 1, side(60, 2), side(1, 3)[0, :D]
    both_TF = torch.cat([forget_TF, retain_TF])
    lam = RIDGE * float(both_TF.square().sum() / F)
    wanted_TD = torch.cat([2 * r_D.expand(40, D), torch.zeros(60, D, dtype=torch.float64)])
    rows = torch.cat([both_TF, lam**0.5 * torch.eye(F, dtype=torch.float64)])
    targets = torch.cat([wanted_TD, torch.zeros(F, D, dtype=torch.float64)])
    optimum_DF = torch.linalg.lstsq(rows, targets).solution.T
    each = redirection(r_D, solved(forget_TF, retain_TF), strength=2.0, usual=1.0)
    change_DF = each.b_DR @ each.a_RF
    torch.testing.assert_close(change_DF, optimum_DF.float(), rtol=1e-4, atol=1e-6)
    assert int(torch.linalg.matrix_rank(change_DF)) == 1


def test_directions_that_no_text_has_are_left_as_they_were() -> None:
    w_F = solved(side(40, 1, width=8) + torch.tensor([1.0] * 8 + [0.0] * 4), side(60, 2, width=8))
    assert float(w_F[:8].abs().max()) > 1e-3  # positive control
    assert float(w_F[8:].abs().max()) < 1e-12


def test_a_larger_ridge_pushes_less() -> None:
    forget_TF, retain_TF = side(40, 1) + 1, side(60, 2)
    pushed = [float((forget_TF @ solved(forget_TF, retain_TF, ridge)).mean()) for ridge in (1e-6, 1e-2, 1.0)]
    assert pushed == sorted(pushed, reverse=True)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_key_vectors_that_say_nothing_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="not finite in this dtype on this data, or all of them are zero"):
        solved(torch.full((4, F), bad, dtype=torch.float64), torch.zeros(4, F, dtype=torch.float64))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_position_embeddings=256)


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> LunarCalibration:
    return calibrate(loaded, *sources(60), LunarOptions(frames=("bare",), material="none"))


def test_it_redirects_held_out_prompts_and_leaves_the_others(calibration: LunarCalibration) -> None:
    chosen = calibration.chosen
    assert chosen is min(calibration.candidates, key=lambda each: each.likeness.deviation)
    assert chosen.said["forget"] > chosen.said["retain"] + 0.2
    assert calibration.auroc > 0.6, "of random weights; held out"
    without, reported = calibration.reported.unchanged, calibration.reported.changed
    assert reported.alike > without.alike + 0.2, "a change that does nothing has the same"
    assert 0.5 < reported.kept < without.kept == 1


def test_its_canaries_agree_and_tell_a_weaker_guard(
    loaded: LoadedModel, calibration: LunarCalibration, tmp_path: Path
) -> None:
    calibration.save(tmp_path / "lunar", "sums")
    artifact = read_artifact(tmp_path / "lunar")
    guard = load_guard(artifact)
    assert isinstance(guard, LunarGuard)
    assert any(canary.fires for canary in artifact.manifest.canaries)
    canaries = artifact.manifest.canaries
    assert disagreements(loaded, LUNAR, guard, canaries) == []
    (layer,), (each,) = guard.deltas, guard.deltas.values()
    weaker = LunarGuard({layer: Factors(each.a_RF * 0.9, each.b_DR, each.usual)}, "unanswerable", 2.0, 1e-3)
    assert len(disagreements(loaded, LUNAR, weaker, canaries)) == len(canaries)


def test_the_residual_stream_moves_where_it_is_meant_to(loaded: LoadedModel, calibration: LunarCalibration) -> None:
    guard = calibration.guard
    assert isinstance(guard, LunarGuard)
    (each,) = guard.deltas.values()
    r_D = calibration.chosen.direction_D
    torch.testing.assert_close(each.b_DR[:, 0].double(), 2.0 * r_D, rtol=1e-5, atol=1e-6)
    assert LUNAR.sites(LunarOptions()) == (Site.KEY, Site.RESIDUAL)
    assert loaded.sites.layers > guard.layers[0]


def test_a_layer_that_is_named_is_taken(loaded: LoadedModel) -> None:
    made = calibrate(loaded, *sources(40), LunarOptions(frames=("bare",), material="none", layer=0, ridge=0.5))
    assert made.guard.layers == (0,)
    assert made.chosen.ridge == 0.5
    with pytest.raises(CalibrationError, match="got `layer` 9, wanted 0 to 2"):
        calibrate(loaded, *sources(40), LunarOptions(frames=("bare",), material="none", layer=9))


@pytest.mark.parametrize("wrong", [{"strength": 0.0}, {"strength": 101.0}, {"ridge": 0.0}])
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(CalibrationError, match=next(iter(wrong))):
        LunarOptions(**wrong)  # type: ignore[arg-type]


def test_a_change_of_another_rank_is_not_its_own(tmp_path: Path) -> None:
    guard = LunarGuard({1: factors(2)}, "unanswerable", 2.0, 1e-3)
    with pytest.raises(ArtifactError, match="a change of rank 2, wanted 1"):
        load_guard(read_artifact(write(tmp_path / "a", LUNAR, guard)))
    parameters, tensors = LUNAR.dump(lunar())
    with pytest.raises(ArtifactError, match="reference"):
        load_guard(
            read_artifact(write_raw(tmp_path / "b", "lunar", {**parameters, "reference": "none"}, dict(tensors)))
        )
