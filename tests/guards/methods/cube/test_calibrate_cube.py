"""Calibrating Key Space Detection on a tiny model: statistics, promises, canaries and bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.calibration.corpus import FORGET_DEAL, RETAIN_DEAL, Share, encode_corpora, frame_tokens
from guards.calibration.detector_job import prepare
from guards.calibration.sources import Source
from guards.calibration.statistics import floor_sigma
from guards.core.quantiles import LEVELS
from guards.core.verdict import Scope
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.cube.calibrate import CubeCalibration
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.guard import CubeGuard, Regime
from guards.methods.cube.options import CubeOptions
from guards.methods.cube.passes import fit_frame, score_all
from guards.methods.registry import CUBE, load_guard, method_of
from guards.model.sites import Place, Site
from tests.guards.tiny import sources, sums, tiny_loaded, words
from tests.guards.verified import disagreements

FRAMES = ("chat", "{text} Q:", "{text}\nA:")
CAP = 0.05
"""What 120 retain texts can show; the default of 0.01 needs 198."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return tiny_loaded()


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> CubeCalibration:
    """Three frames, the default layer choice."""
    return calibrate_cubes(loaded, *sources(), CubeOptions(frames=FRAMES, max_false_abstention=CAP))


def _silent(_: int, __: str) -> None:
    return None


def _keys(loaded: LoadedModel, layer: int, ids: tuple[int, ...]) -> Tensor:
    """Key vectors [T, F] of one prompt, from a hook of the test's own."""
    kept: list[Tensor] = []
    module = loaded.sites.tap(Place(layer, Site.KEY)).module
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("regime", ["last-token", "all-tokens"])
def test_streamed_statistics_equal_one_shot(loaded: LoadedModel, regime: str) -> None:
    options = CubeOptions(frames=("chat",), regime=Regime(regime).value, batch_tokens=100)
    job = prepare(loaded, *sources(60), options)
    fit = fit_frame(job, "chat", _silent)[1]
    lead, trail = job.skips["chat"]
    assert (lead, trail) == (4, 3), "bos Q : space; newline A :"
    rows = [_keys(loaded, 1, ids) for ids in job.examples("forget", Share.FIT, "chat")]
    chosen = [
        row[-1:] if regime == "last-token" else torch.cat([row[lead : len(row) - trail], row[-1:]]) for row in rows
    ]
    key_TF = torch.cat(chosen).double()
    assert fit.vectors == len(key_TF)
    std_F, floored = floor_sigma(key_TF.std(dim=0).float())
    # float32 activations from differently shaped matrix products, moments in float64.
    torch.testing.assert_close(fit.cube.mean_F, key_TF.mean(dim=0).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fit.cube.std_F, std_F, rtol=1e-3, atol=1e-5)
    assert fit.floored == floored
    k = float(((key_TF.float() - fit.cube.mean_F) / fit.cube.std_F).abs().max())
    assert fit.cube.k == pytest.approx(k, rel=1e-3)


def test_scores_do_not_depend_on_batching(loaded: LoadedModel) -> None:
    tables = []
    for batch_tokens in (16, 70, 10_000):
        job = prepare(loaded, *sources(20), CubeOptions(frames=("chat",), layer=1, batch_tokens=batch_tokens))
        tables.append(score_all(job, [fit_frame(job, "chat", _silent)], _silent))
    for table in tables[1:]:
        for at, scores in table.items():
            torch.testing.assert_close(scores, tables[0][at], rtol=1e-2, atol=1e-4)


def test_all_tokens_score_is_the_smallest_over_the_text(loaded: LoadedModel) -> None:
    job = prepare(loaded, *sources(20), CubeOptions(frames=("chat",), layer=1, regime="all-tokens"))
    fits = fit_frame(job, "chat", _silent)
    scores = score_all(job, [fits], _silent)["retain", Share.REPORT, "chat"][0, 0]
    (fit,) = fits
    for example, ids in enumerate(job.examples("retain", Share.REPORT, "chat")):
        key_TF = _keys(loaded, 1, ids)
        lead, trail = job.skips["chat"]
        score_T = ((key_TF - fit.cube.mean_F) / fit.cube.std_F).abs().amax(dim=1)
        wanted = min(float(score_T[lead : len(ids) - trail].min()), float(score_T[-1]))
        assert float(scores[example]) == pytest.approx(wanted, rel=1e-3)
    prompt_only = replace(job, options=CubeOptions(layer=1, regime="all-tokens", scope=Scope.PROMPT))
    last = score_all(prompt_only, [fits], _silent)["retain", Share.REPORT, "chat"][0, 0]
    assert bool((last >= scores).all())
    assert not torch.equal(last, scores)


def test_separates_what_can_be_separated(calibration: CubeCalibration) -> None:
    assert isinstance(calibration.guard, CubeGuard)
    assert [cube.frame for cube in calibration.guard.cubes] == list(FRAMES)
    for result in calibration.frames:
        assert round(result.chosen.auroc, 3) == max(round(layer.auroc, 3) for layer in result.by_layer)
        assert result.chosen.reported_auroc > 0.99
        assert result.recall.rate > 0.85
        assert result.false_abstention.rate <= 0.05
    assert calibration.record.recall is not None
    assert calibration.record.recall.rate == min(result.recall.rate for result in calibration.frames)
    assert calibration.record.recall.total == 60
    assert calibration.record.false_abstention is not None
    assert calibration.record.false_abstention.total == 120


def test_how_common_scores_of_prompts_are_is_recorded(calibration: CubeCalibration) -> None:
    quantiles = calibration.record.quantiles
    assert quantiles is not None
    assert quantiles.examples == sum(len(frame.retain_E) for frame in calibration.frames)
    assert quantiles.over_tau[LEVELS.index(0.5)] > 1


def test_the_same_input_gives_the_same_bytes(loaded: LoadedModel, tmp_path: Path) -> None:
    digests = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = calibrate_cubes(loaded, *sources(80), CubeOptions(frames=("chat",), seed=seed))
        digests.add(result.save(tmp_path / name, "sums"))
    for file in ("manifest.json", "tensors.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(digests) == 2, "positive control: another seed splits otherwise"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_canaries_agree_when_read_back_and_attached(calibration: CubeCalibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "guard", "sums")
    artifact = read_artifact(tmp_path / "guard")
    canaries = artifact.manifest.canaries
    assert canaries == calibration.canaries
    assert method_of(artifact) is calibration.method is CUBE
    assert 1 <= len(canaries) <= 16
    assert {canary.fires for canary in canaries} == {True, False}
    assert all(len(canary.scores) == len(FRAMES) for canary in canaries)
    assert isinstance(calibration.guard, CubeGuard)
    taus = [cube.tau for cube in calibration.guard.cubes]
    for canary in canaries:
        ratio = min(score / tau for score, tau in zip(canary.scores, taus, strict=True))
        assert ratio <= 0.9 if canary.fires else ratio >= 1.1
    guard = load_guard(artifact)
    assert disagreements(tiny_loaded(), CUBE, guard, canaries) == []
    assert disagreements(tiny_loaded(seed=5), CUBE, guard, canaries) != [], "positive control: other weights"


def _mixed(share: int) -> tuple[list[Source], list[Source]]:
    """240 sums to forget; retain texts of which every `share`-th is a sum too."""
    hidden = sums(480, seed=7)
    forget = Source("sums", tuple(text for text in hidden[:240]))
    rest = words(240)
    mixed = tuple(hidden[240 + i] if i % share == 0 else rest[i] for i in range(240))
    return [forget], [Source("mixed", mixed)]


def test_the_cap_wins_over_recall(loaded: LoadedModel) -> None:
    cap = 0.1
    loose = calibrate_cubes(loaded, *_mixed(6), CubeOptions(frames=("chat",), max_false_abstention=0.9))
    assert loose.frames[0].false_abstention.rate > cap, "positive control: a sixth of the retain texts are sums"
    capped = calibrate_cubes(loaded, *_mixed(6), CubeOptions(frames=("chat",), max_false_abstention=cap, layer=0))
    (result,) = capped.frames
    job = prepare(loaded, *_mixed(6), capped.options)
    scores = score_all(job, [fit_frame(job, "chat", _silent)], _silent)["retain", Share.THRESHOLD, "chat"][0, 0]
    assert float((scores <= result.tau).float().mean()) <= cap
    assert result.recall.rate < loose.frames[0].recall.rate
    assert any("tau was lowered" in warning for warning in capped.warnings)
    assert any("tau was lowered" in note for note in capped.record.notes)


def test_a_source_that_needs_the_skill_is_named(loaded: LoadedModel) -> None:
    forget, retain = _mixed(240)
    retain.append(Source("more sums", sums(540, seed=7)[480:]))
    result = calibrate_cubes(loaded, forget, retain, CubeOptions(frames=("chat",), max_false_abstention=0.3))
    assert any("on more sums alone; the cap holds on all" in warning for warning in result.warnings)
    assert not any("on mixed alone" in warning for warning in result.warnings)


def test_a_skill_that_cannot_be_told_apart_is_refused(loaded: LoadedModel) -> None:
    texts = sums(400)
    with pytest.raises(CalibrationError, match=r"nothing was written .*AUROC 0\.[45]"):
        calibrate_cubes(loaded, [Source("a", texts[:200])], [Source("b", texts[200:])], CubeOptions(frames=("bare",)))


def test_few_examples_are_refused_or_warned_about(loaded: LoadedModel) -> None:
    few = calibrate_cubes(loaded, *sources(60), CubeOptions(frames=("chat",)))
    assert any("only 30 key vectors" in warning for warning in few.warnings)
    assert any("cannot show a false-abstention rate of 0.01" in warning for warning in few.warnings)
    forget, retain = sources(3)
    with pytest.raises(CalibrationError, match="got 3 forget and 3 retain examples, wanted at least 4 and 2"):
        calibrate_cubes(loaded, forget, retain, CubeOptions())
    with pytest.raises(CalibrationError, match="got no retain examples"):
        calibrate_cubes(loaded, forget, [], CubeOptions())
    with pytest.raises(DataError, match="both the forget and the retain"):
        calibrate_cubes(loaded, forget, forget, CubeOptions())


def test_a_model_that_overflows_is_refused() -> None:
    broken = tiny_loaded()
    torch.nn.init.constant_(broken.model.model.layers[0].mlp.down_proj.weight, torch.inf)
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate_cubes(broken, *sources(20), CubeOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "got `layer` 3, wanted 0 to 2"),
        ({"layer": -1}, "got `layer` -1"),
        ({"recall": 1.0}, "got `recall` 1.0"),
        ({"max_false_abstention": 1.0}, "got `max_false_abstention` 1.0"),
        ({"frames": ("bare", "bare")}, "got `frames` .*wanted each once"),
        ({"batch_tokens": 0}, "got `batch_tokens` 0"),
    ],
)
def test_refuses_an_option(loaded: LoadedModel, options: dict[str, int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate_cubes(loaded, *sources(8), CubeOptions(**options))  # type: ignore[arg-type]


def test_refuses_a_frame_the_model_lacks() -> None:
    plain = tiny_loaded(chat_template=None)
    assert prepare(plain, *sources(8), CubeOptions()).frames == ("bare",)
    for frame, message in (("chat", "no chat template"), ("Q: text", "wanted 'chat', 'bare' or a template")):
        with pytest.raises(DataError, match=message):
            prepare(plain, *sources(8), CubeOptions(frames=(frame,)))


def test_texts_longer_than_the_context_are_left_out_and_said_so(loaded: LoadedModel) -> None:
    forget, retain = sources(80)
    long = Source("long", (" ".join(words(30, seed=9)),))
    result = calibrate_cubes(loaded, forget, [*retain, long], CubeOptions(frames=("chat",)))
    left_out = "1 retain example(s) were left out: longer than the model's 64 tokens; `cut` takes what fits"
    assert left_out in result.warnings
    assert result.record.sources[-1].examples == 0


@pytest.mark.parametrize(("rows", "repeats", "warns"), [(80, 41, True), (80, 40, False), (None, None, False)])
def test_rows_that_mostly_repeat_are_warned_of(
    loaded: LoadedModel, rows: int | None, repeats: int | None, warns: bool
) -> None:
    forget, retain = sources(80)
    said = replace(forget[0], field="instruction", rows=rows, repeats=repeats)
    result = calibrate_cubes(loaded, [said], retain, CubeOptions(frames=("chat",)))
    found = [each for each in result.warnings if "41 of 80 rows repeat others in field instruction" in each]
    assert bool(found) is warns
    record = result.record.sources[0]
    assert (record.field, record.rows, record.repeats) == ("instruction", rows, repeats)


def test_parts_are_disjoint_whole_and_independent_of_order(loaded: LoadedModel) -> None:
    forget, retain = sources(81)
    turned = [Source("sums", tuple(reversed(forget[0].texts)))]
    corpus, _ = encode_corpora(forget, retain, ("bare",), loaded.codec, None)
    other, _ = encode_corpora(turned, retain, ("bare",), loaded.codec, None)
    parts, again = corpus.deal(FORGET_DEAL, 0), other.deal(FORGET_DEAL, 0)
    assert sorted(e for members in parts.values() for e in members) == list(range(81))
    assert {share: len(members) for share, members in parts.items()} == {"fit": 41, "threshold": 20, "report": 20}
    for share, members in parts.items():
        assert {corpus.texts[e] for e in members} == {other.texts[e] for e in again[share]}
    assert set(corpus.deal(RETAIN_DEAL, 0)) == {Share.THRESHOLD, Share.REPORT}


def test_the_frames_own_tokens_are_recognised() -> None:
    assert frame_tokens([(1, 2, 3, 4), (1, 2, 9, 8, 4), (1, 2, 3, 4)]) == (2, 1)
    assert frame_tokens([(1, 2), (1, 2, 3)]) == (1, 0)
    assert frame_tokens([(5,), (6, 7)]) == (0, 0)


@pytest.mark.real
def test_real_text_is_told_apart(shared_data: Path) -> None:
    from guards.calibration.sources import read_source
    from guards.inside.transformers.loading import load_model

    loaded = load_model(shared_data / "weights" / "realtext5m", "cpu")
    forget = [read_source(f"{shared_data}/mbpp/mbpp.jsonl?task_id=511..974#text", limit=200)]
    retain = [read_source(f"{shared_data}/gsm8k/train.jsonl", limit=100)]
    result = calibrate_cubes(loaded, forget, retain, CubeOptions(frames=("Q: {text}\nA:",)))
    assert result.frames[0].chosen.reported_auroc > 0.98
    assert result.frames[0].false_abstention.rate <= 0.05
