"""What the measurement of probes computes, and how its section reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measurements.probes import probes_section
from benchmarks.measurements.results import Results
from benchmarks.probes import FORGET, UNSEEN, Text, alike, area, fitted, rows_of, scores, see
from guards.calibration.accumulated import turns_of
from guards.methods.probe.fit import Probe
from guards.methods.spans.guard import LayerWeights
from guards.model.sites import Site
from tests.guards.attached import keys
from tests.guards.tiny import sums, tiny_loaded, words

COUNT = 3


def probe(layer: int, *weights: float) -> Probe:
    return Probe(LayerWeights(layer, torch.tensor(weights), 0.0), -0.5, 1.0, 0)


@torch.no_grad()
def test_windows_of_both_aggregations_are_seen_in_one_pass() -> None:
    """A text's last token, and the mean of the tokens that are its own: here all but the first."""
    loaded = tiny_loaded(chat_template=None)
    of = [Text(loaded.codec.encode_text(text), FORGET, 0) for text in ("12+34=", "7+8=")]
    turns = [turns_of(each.ids, ()) for each in of]
    found = see(loaded, of, turns, {Site.RESIDUAL: [0, 1], Site.KEY: [1]})
    last, spans = found[Site.RESIDUAL].values()
    assert last.text_N.tolist() == spans.text_N.tolist() == [0, 1]
    for index, each in enumerate(of):
        hidden_TF = loaded.model(torch.tensor([each.ids]), output_hidden_states=True).hidden_states[2][0]
        torch.testing.assert_close(last.x_NF[1][index], hidden_TF[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(spans.x_NF[1][index], hidden_TF[1:].mean(dim=0), rtol=1e-4, atol=1e-5)
        key_TF = keys(loaded.model, torch.tensor([each.ids]), 1)
        torch.testing.assert_close(found[Site.KEY]["last"].x_NF[1][index], key_TF[-1], rtol=1e-4, atol=1e-5)


def test_what_is_fitted_is_not_measured() -> None:
    loaded, of = tiny_loaded(chat_template=None), []
    for file, texts in ((FORGET, sums(40)), (UNSEEN, sums(60)[40:]), ("other/words", words(80))):
        for index, text in enumerate(texts):
            half = None if index % 2 or file == UNSEEN else index // 2 % 2
            of.append(Text(loaded.codec.encode_text(text), file, half))
    turns = [turns_of(each.ids, ()) for each in of]
    spans = see(loaded, of, turns, {Site.RESIDUAL: [1]})[Site.RESIDUAL]["spans"]
    found = fitted(spans, of, 1, (0, 1))
    assert found is not None
    score_E = scores(spans, of, found.term)
    known, unseen = rows_of(Site.RESIDUAL, "spans", 1, COUNT, of, score_E)
    assert (known["measured"], unseen["measured"], known["third"]) == ("gsm8k", "mmlu", "middle")
    assert float(str(known["auroc"])) > 0.9
    spoilt_E = torch.tensor([each.half is not None for each in of])
    again, _ = rows_of(Site.RESIDUAL, "spans", 1, COUNT, of, torch.where(spoilt_E, torch.nan, score_E))
    assert again == known, "scores of fitted texts are not looked at"


def test_an_interval_holds_its_figure() -> None:
    draw = torch.Generator().manual_seed(1)
    found = area(torch.randn(60, generator=draw) - 2, torch.randn(200, generator=draw), seed=0)
    low, high = found["interval"]  # type: ignore[misc]
    assert 0 < low < float(str(found["log_auroc"])) < high < 1  # type: ignore[has-type]


def test_directions_of_one_layer_are_told_from_those_of_several() -> None:
    apart = [probe(0, 1.0, 0.0), probe(1, 1.0, 1.0), probe(2, 0.0, 1.0)]
    found = alike(apart, [(probe(0, 2.0, 0.0), probe(0, 3.0, 0.0))], COUNT)
    assert found["matrix"][0][2] == 0  # type: ignore[index]
    assert found["neighbours"] == pytest.approx(0.5**0.5)
    assert (found["far_apart"], found["halves"]) == (0, 1)


@pytest.mark.parametrize(("far", "said"), [(0.05, "So they do differ by depth."), (0.7, "So they differ no more than")])
def test_the_section_says_whether_directions_differ(tmp_path: Path, far: float, said: str) -> None:
    row: dict[str, Any] = {"site": "residual", "log_auroc": 0.5, "interval": [0.4, 0.6], "auroc": 0.9}
    rows = [
        {**row, "measured": of, "aggregation": tokens, "layer": layer, "third": third}
        for of in ("gsm8k", "mmlu")
        for tokens in ("last", "spans")
        for layer, third in enumerate(("early", "middle", "late"))
    ]
    directions = {"neighbours": 0.8, "far_apart": far, "halves": 0.9}
    texts = ("gsm8k_fitted", "gsm8k_measured", "mmlu_measured", "others_fitted", "others_measured")
    found = {
        **{"command": "python -m benchmarks.probes", "environment": {"commit": "c"}, "rows": rows},
        **{
            "texts": dict.fromkeys(texts, 4),
            "rates": [0.01, 0.1],
            "directions": dict.fromkeys(("last", "spans"), directions),
        },
    }
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "probes.tiny.json").write_text(json.dumps(found))
    text = probes_section(Results(tmp_path), "tiny")
    assert said in " ".join(text.split())
    assert "0.500 [0.400, 0.600], layer 2" in " ".join(text.split())
    assert text.count("| mmlu") == 2
