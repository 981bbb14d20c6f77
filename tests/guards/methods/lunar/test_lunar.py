"""LUNAR: the solve against the least squares that it stands for, and a calibration on a tiny model.

Suffixes: T tokens, F feed-forward width, D the residual stream's.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.calibration.activations import TokenIds
from guards.calibration.corpus import SIDES, Share, Side
from guards.calibration.sources import Source
from guards.errors import ArtifactError, CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.delta import Factors
from guards.methods.lunar.calibrate import RIDGES, LunarCalibration, calibrate
from guards.methods.lunar.guard import LunarGuard, RidgeSums, redirection
from guards.methods.lunar.job import prepared
from guards.methods.lunar.options import LunarOptions
from guards.methods.registry import LUNAR, load_guard
from guards.model.sites import Place, Site
from tests.guards.samples import factors, lunar, write, write_raw
from tests.guards.tiny import sources, sums, tiny_loaded
from tests.guards.verified import disagreements

F, D, RIDGE = 12, 5, 1e-3
OPTIONS = LunarOptions(frames=("bare",), material="none")
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
    return calibrate(loaded, *sources(60), OPTIONS)


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


@torch.no_grad()
def states(loaded: LoadedModel, layer: int, prompts: Sequence[TokenIds]) -> Tensor:
    """What a block gives at each prompt's last token, prompt by prompt, by a hook of the test's own, float64 [E, D]."""
    kept: list[Tensor] = []
    block = loaded.sites.tap(Place(layer, Site.RESIDUAL)).module
    handle = block.register_forward_hook(lambda _, __, output: kept.append(output[0, -1].double()))
    for ids in prompts:
        loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return torch.stack(kept)


def test_the_way_leads_from_the_skills_prompts_to_reference_prompts(
    loaded: LoadedModel, calibration: LunarCalibration
) -> None:
    """``c r``, r the difference of means after the block at last tokens; not of another block, nor of other prompts."""
    guard = calibration.guard
    assert isinstance(guard, LunarGuard)
    ((layer, each),) = guard.deltas.items()
    job = prepared(loaded, *sources(60), OPTIONS)

    def way(at: int, share: Share) -> Tensor:
        goal_D = states(loaded, at, job.reference).mean(dim=0)
        return 2.0 * (goal_D - states(loaded, at, job.of("forget", share)).mean(dim=0))

    got_D = each.b_DR[:, 0].double()
    torch.testing.assert_close(got_D, way(layer, Share.FIT), rtol=1e-4, atol=1e-5)
    for other_D in (way((layer + 1) % 3, Share.FIT), way(layer, Share.THRESHOLD)):
        assert not torch.allclose(got_D, other_D, rtol=1e-2, atol=1e-3)  # positive control
    usual = states(loaded, layer, job.of("retain", Share.FIT)).square().sum(dim=1).mean().sqrt()
    assert each.usual == pytest.approx(float(usual), rel=1e-5)
    assert LUNAR.sites(LunarOptions()) == (Site.KEY, Site.RESIDUAL)


def test_the_ridge_is_the_one_under_which_held_out_tokens_are_told_best(
    loaded: LoadedModel, calibration: LunarCalibration
) -> None:
    """Every ridge's w by a solver of its own, and its squared error on tokens that no w was solved on."""
    chosen, job = calibration.chosen, prepared(loaded, *sources(60), OPTIONS)

    def key_vectors(side: Side, share: Share) -> Tensor:
        kept: list[Tensor] = []
        job.keys((chosen.layer,), side, share, lambda _, k_TF, __: kept.append(k_TF.double()))
        return torch.cat(kept)

    forget_TF, retain_TF = (key_vectors(side, Share.FIT) for side in SIDES)
    held = [(key_vectors(side, Share.THRESHOLD), wanted) for side, wanted in zip(SIDES, (1.0, 0.0), strict=True)]
    both_TF = torch.cat([forget_TF, retain_TF])
    width, found = both_TF.shape[1], []
    for ridge in RIDGES:
        lam = ridge * float(both_TF.square().sum()) / width
        products_FF = both_TF.T @ both_TF + lam * torch.eye(width, dtype=torch.float64)
        w_F = torch.linalg.solve(products_FF, forget_TF.sum(dim=0))
        found.append((sum(float((k_TF @ w_F - wanted).square().mean()) for k_TF, wanted in held), ridge, w_F))
    error, ridge, w_F = min(found, key=lambda each: each[0])
    assert chosen.ridge == ridge
    torch.testing.assert_close(chosen.w_F, w_F, rtol=1e-5, atol=1e-8)
    assert max(each[0] for each in found) > 1.05 * error, "positive control: ridges differ"
    assert list(chosen.said.values()) == pytest.approx([float((k_TF @ w_F).mean()) for k_TF, _ in held], rel=1e-4)


@pytest.mark.parametrize("share", [Share.THRESHOLD, Share.REPORT])
def test_held_out_texts_on_which_the_model_overflows_are_said(share: Share) -> None:
    """Not the change's fault, and no figure that is none."""
    broken = tiny_loaded(max_position_embeddings=256)
    (bad,) = broken.codec.encode_text("\n", opened=False)
    broken.model.get_input_embeddings().weight.data[bad] = torch.nan
    options = replace(OPTIONS, layer=1, asked=2, asked_tokens=1)
    (words,) = sources(40)[1]
    for number in range(100):  # one that is dealt where it is wanted, and is not among those that are answered
        given = [Source("sums", (*sums(39), f"{number}\n1="))], [words]
        job = prepared(broken, *given, options)
        of = {ids for ids in job.of("forget", share) if ids not in job.asked("forget", share)}
        if any(bad in ids for ids in of):
            break
    with pytest.raises(CalibrationError, match="key vectors of held-out texts are not finite in this dtype"):
        calibrate(broken, *given, options)


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
