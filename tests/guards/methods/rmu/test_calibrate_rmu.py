"""Calibrating the RMU family on a tiny model, from texts to an artifact that acts as the training did."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.calibration.activations import Activations, TokenIds
from guards.calibration.corpus import Share, encode_corpora, frame_tokens
from guards.calibration.sources import Source
from guards.errors import CalibrationError, DataError, UnsupportedModelError
from guards.inside.transformers.attach import Attachment
from guards.inside.transformers.loading import LoadedModel
from guards.methods.registry import load_guard, method_of
from guards.methods.rmu.calibrate import RmuCalibration, calibrate, trained_layers
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.examples import DEAL, MEASURED, dealt_examples
from guards.methods.rmu.guard import RmuGuard
from guards.methods.rmu.objectives import random_unit
from guards.methods.rmu.options import AdaptiveOptions, CosineOptions, FamilyOptions, ProbeOptions, RmuOptions
from guards.methods.rmu.probes import fit_probes
from guards.methods.rmu.shown import plots, report, table
from guards.model.sites import Place, Site
from tests.guards.attached import hooks
from tests.guards.samples import rmu
from tests.guards.tiny import sources, sums, tiny_loaded, words
from tests.guards.verified import disagreements
from tests.models import D_FF, D_MODEL

OPTIONS: dict[str, FamilyOptions] = {
    "adaptive": AdaptiveOptions(frames=("chat", "bare"), steps=40, rate=1e-2, alpha=1.0),
    "rmu": RmuOptions(steps=40, rate=1e-2, alpha=1.0, c=20.0),
    "cosine": CosineOptions(steps=40, rate=1e-2),
    "probe": ProbeOptions(steps=40, rate=1e-2, alpha=1.0),
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def calibrated(loaded: LoadedModel) -> dict[str, RmuCalibration]:
    return {variant: calibrate(loaded, *sources(40), options) for variant, options in OPTIONS.items()}


def guard_of(calibration: RmuCalibration) -> RmuGuard:
    assert isinstance(calibration.guard, RmuGuard)
    return calibration.guard


@pytest.mark.parametrize("variant", list(OPTIONS))
def test_a_training_withholds_and_its_rank_does_what_was_measured(
    loaded: LoadedModel, calibrated: dict[str, RmuCalibration], variant: str, tmp_path: Path
) -> None:
    calibration = calibrated[variant]
    none, served, whole = calibration.measured
    assert whole.forget < none.forget, "on text that was neither trained on nor chosen by"
    assert none.retain == pytest.approx(0, abs=1e-6)
    assert calibration.chosen.gain >= 0.95
    assert (served.rank, none.rank, whole.rank) == (calibration.chosen.rank, 0, None)
    calibration.save(tmp_path / "guard", "sums")
    artifact = read_artifact(tmp_path / "guard")
    assert method_of(artifact) is calibration.method is VARIANTS[OPTIONS[variant].variant]
    guard = load_guard(artifact)
    assert isinstance(guard, RmuGuard)
    assert guard.variant == variant
    assert guard.layers == (0, 1, 2)
    for factors in guard.deltas.values():
        assert (factors.a_RF.dtype, factors.b_DR.dtype) == (torch.bfloat16, torch.bfloat16)
        assert (factors.a_RF.shape, factors.b_DR.shape) == ((served.rank, D_FF), (D_MODEL, served.rank))
    canaries = artifact.manifest.canaries
    assert any(canary.fires for canary in canaries)
    assert disagreements(tiny_loaded(), calibration.method, guard, canaries) == []
    other = RmuGuard(guard.variant, {layer: guard.deltas[layer] for layer in (0, 1)})
    assert disagreements(tiny_loaded(), calibration.method, other, canaries) != [], "positive control: less is added"
    assert not hooks(loaded.model)


def _states(loaded: LoadedModel, texts: tuple[str, ...]) -> Tensor:
    """After the last block at each text's last token, in the chat frame, [E, D]."""
    kept: list[Tensor] = []
    block = loaded.sites.tap(Place(2, Site.RESIDUAL)).module
    handle = block.register_forward_hook(lambda _, __, output: kept.append(output[0, -1].clone()))
    with torch.no_grad():
        for text in texts:
            loaded.model(input_ids=torch.tensor([loaded.codec.encode_frame("chat", text)]))
    handle.remove()
    return torch.stack(kept)


def test_what_is_served_sends_forget_states_where_the_training_did(
    loaded: LoadedModel, calibrated: dict[str, RmuCalibration]
) -> None:
    (forget,), (retain,) = sources(40)
    unit = random_unit(D_MODEL, seed=0)
    guard, method = guard_of(calibrated["cosine"]), calibrated["cosine"].method
    before = {side.name: _states(loaded, side.texts) for side in (forget, retain)}
    with Attachment(loaded.model, loaded.sites, {"guard": (method, guard)}, loaded.codec.openings) as attachment:
        after = {}
        for side in (forget, retain):
            after[side.name] = _states(loaded, side.texts)
            attachment.take(0)

    def towards(states: dict[str, Tensor], name: str) -> float:
        return float(torch.cosine_similarity(states[name], unit[None], dim=1).mean())

    def kept(name: str) -> float:
        return float(torch.cosine_similarity(after[name], before[name], dim=1).mean())

    assert abs(towards(before, "sums")) < 0.4
    assert towards(after, "sums") > 0.6
    assert kept("words") > kept("sums") + 0.3


def _after(loaded: LoadedModel, layer: int, ids: TokenIds) -> Tensor:
    """The residual stream after a block at each token, [T, D]."""
    kept: list[Tensor] = []
    block = loaded.sites.tap(Place(layer, Site.RESIDUAL)).module
    handle = block.register_forward_hook(lambda _, __, output: kept.append(output[0].clone()))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept[0]


def test_what_probes_read_is_trained_away_at_last_tokens_alone(
    loaded: LoadedModel, calibrated: dict[str, RmuCalibration]
) -> None:
    """The report part's forget loss without deltas, by states of the test's own."""
    corpora = encode_corpora(*sources(40), ("chat",), loaded.codec, loaded.max_tokens)
    dealt = dealt_examples(corpora, length=512, last_only=False, seed=0)
    forget, retain = ([ids for ids, _ in side] for side in (dealt[Share.FIT].forget, dealt[Share.FIT].retain))
    probes = fit_probes(loaded, (0, 1, 2), forget, retain, None)

    def read(first: int) -> float:
        of = [
            torch.stack([(_after(loaded, layer, ids)[first:] @ w_D).square() for layer, w_D in probes.items()]).sum(0)
            for ids, _ in dealt[Share.REPORT].forget
        ]
        return float(torch.cat(of).mean())

    without = calibrated["probe"].measured[0]
    assert without.forget == pytest.approx(read(-1), rel=1e-3)
    assert without.forget != pytest.approx(read(0), rel=0.1), "positive control: other tokens read otherwise"


def test_a_push_is_told_by_the_usual_length_of_retain_prompts(
    loaded: LoadedModel, calibrated: dict[str, RmuCalibration]
) -> None:
    """Root mean square, at last tokens, where no delta is on."""
    corpora = encode_corpora(*sources(40), ("chat",), loaded.codec, loaded.max_tokens)
    dealt = dealt_examples(corpora, length=512, last_only=False, seed=0)
    for layer, each in guard_of(calibrated["probe"]).deltas.items():
        last_ED = torch.stack([_after(loaded, layer, ids)[-1] for ids, _ in dealt[Share.THRESHOLD].retain])
        assert each.usual == pytest.approx(float(last_ED.square().sum(dim=1).mean().sqrt()), rel=1e-5)
    assert len({each.usual for each in guard_of(calibrated["probe"]).deltas.values()}) == 3, "positive control"


def test_a_calibration_says_what_it_did(calibrated: dict[str, RmuCalibration]) -> None:
    calibration = calibrated["cosine"]
    assert len(calibration.history) == 40
    assert calibration.alpha != 1.0
    assert {step.alpha for step in calibrated["rmu"].history} == {1.0}
    shown = table(calibration)
    assert [row[0].split()[0] for row in shown.rows] == ["0", "1", "2", "4", "8", "16", "whole"]
    assert sum("served" in row[0] for row in shown.rows) == 1
    said = report(calibration)
    assert said["served_rank"] == calibration.chosen.rank
    assert len(said["steps"]) == 40
    energies = said["energies"]["2"]
    assert list(energies.values()) == sorted(energies.values())
    assert all(drawn.startswith(b"\x89PNG") for drawn in plots(calibration, "sums").values())
    assert any("of the delta's energy" in note for note in calibration.record.notes)


def test_a_stopped_calibration_goes_on_to_the_same_bytes(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "state"
    options = {"rate": 1e-2, "alpha": 1.0, "checkpoint_every": 7}
    calibrate(loaded, *sources(40), AdaptiveOptions(steps=20, **options)).save(tmp_path / "whole", "sums")  # type: ignore[arg-type]
    calibrate(loaded, *sources(40), AdaptiveOptions(steps=9, checkpoint=file, **options))  # type: ignore[arg-type]
    resumed = calibrate(loaded, *sources(40), AdaptiveOptions(steps=20, checkpoint=file, **options))  # type: ignore[arg-type]
    resumed.save(tmp_path / "resumed", "sums")
    for name in ("manifest.json", "tensors.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    with pytest.raises(DataError, match="got a state of 20 steps, wanted at most the 9 of `steps`"):
        calibrate(loaded, *sources(40), AdaptiveOptions(steps=9, checkpoint=file, **options))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the state of another training: got examples"):
        calibrate(loaded, *sources(48), AdaptiveOptions(steps=20, checkpoint=file, **options))  # type: ignore[arg-type]


def test_examples_are_looked_at_after_what_all_of_them_begin_with(loaded: LoadedModel) -> None:
    corpora = encode_corpora(*sources(40), ("chat", "bare"), loaded.codec, loaded.max_tokens)
    dealt = dealt_examples(corpora, length=9, last_only=False, seed=0)
    leading = {
        frame: frame_tokens([ids for corpus in corpora for ids in corpus.encoded[frame]])[0]
        for frame in ("chat", "bare")
    }
    assert leading["chat"] > leading["bare"], "the template's own"
    assert {first for _, first in dealt[Share.FIT].forget} == {max(leading["chat"], 1), max(leading["bare"], 1)}
    assert {first for _, first in dealt[Share.FIT].retain} == {0}
    assert max(len(ids) for ids, _ in dealt[Share.FIT].forget) == 9
    counts = {share: len(sides.forget) for share, sides in dealt.items()}
    assert counts == {Share.FIT: 60, Share.THRESHOLD: 10, Share.REPORT: 10}
    seen = [set(sides.forget) for sides in dealt.values()]
    assert not seen[1] & seen[2]
    last = dealt_examples(corpora, length=9, last_only=True, seed=0)
    assert all(first == len(ids) - 1 for ids, first in last[Share.FIT].forget)


def test_what_is_measured_on_is_of_all_sources_and_frames(loaded: LoadedModel) -> None:
    """More texts than are measured on, of two sources a side."""
    forget = [Source("sums", sums(280)), Source("differences", tuple(each.replace("+", "?") for each in sums(280)))]
    retain = [Source("words", words(280)), Source("others", tuple(f"{each} q" for each in words(280)))]
    corpora = encode_corpora(forget, retain, ("chat", "bare"), loaded.codec, loaded.max_tokens)
    dealt = dealt_examples(corpora, length=64, last_only=False, seed=0)
    for share in (Share.THRESHOLD, Share.REPORT):
        for corpus, examples in zip(corpora, (dealt[share].forget, dealt[share].retain), strict=True):
            assert len(examples) == MEASURED
            of = {
                (frame, corpus.source_of[index])
                for frame, encoded in corpus.encoded.items()
                for index in map(encoded.index, (each.ids for each in examples if each.ids in encoded))
            }
            assert of == {("chat", 0), ("chat", 1), ("bare", 0), ("bare", 1)}


def test_layers_are_at_the_depth_that_the_papers_used() -> None:
    assert trained_layers(AdaptiveOptions(), 32) == (5, 6, 7)
    assert trained_layers(AdaptiveOptions(), 30) == (5, 6, 7)
    assert trained_layers(AdaptiveOptions(), 3) == (0, 1, 2)
    assert trained_layers(RmuOptions(layer=9), 32) == (7, 8, 9)
    assert trained_layers(ProbeOptions(), 32) == (7, 8, 9, 15, 16, 17, 23, 24, 25)
    assert trained_layers(ProbeOptions(), 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: AdaptiveOptions(layer=1), "got `layer` 1, wanted 2 or more"),
        (lambda: AdaptiveOptions(layer=3), "got `layer` 3, wanted one from 2 to below the model's 3 layers"),
        (lambda: AdaptiveOptions(beta=0.0), "got `beta` 0.0"),
        (lambda: RmuOptions(c=-1.0), "got `c` -1.0"),
        (lambda: RmuOptions(steps=0), "got `steps` 0"),
        (lambda: RmuOptions(rate=float("inf")), "got `rate` inf"),
        (lambda: RmuOptions(alpha=0.0), "got `alpha` 0.0"),
        (lambda: RmuOptions(kept=1.5), "got `kept` 1.5"),
        (lambda: CosineOptions(alpha_rate=-1.0), "got `alpha_rate` -1.0"),
        (lambda: CosineOptions(retain_worth=0.0), "got `retain_worth` 0.0"),
    ],
)
def test_refuses(loaded: LoadedModel, options: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(loaded, *sources(40), options())  # type: ignore[operator]


def test_too_few_examples_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(CalibrationError, match="got 7 forget examples, wanted at least 8"):
        calibrate(loaded, *sources(len(DEAL) - 1), AdaptiveOptions(steps=1))


def test_experts_have_nothing_to_train() -> None:
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        calibrate(tiny_loaded("mixtral"), *sources(40), AdaptiveOptions(steps=1))


def test_an_engine_that_cannot_train_is_refused() -> None:
    class Running:
        """What vLLM is to a calibration: it has no `tuned`."""

    with pytest.raises(CalibrationError, match="wanted `engine` transformers"):
        calibrate(cast(Activations, Running()), *sources(40), AdaptiveOptions(steps=1))


def test_a_sample_is_as_wide_as_the_model() -> None:
    assert rmu().layers == (0, 1, 2)
