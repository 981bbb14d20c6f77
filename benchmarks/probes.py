"""What probes of a real model separate, by layer, site and aggregation, and whether their directions differ by layer.

    python -m benchmarks.probes --model DIR [--name NAME] [--forget N] [--retain N]

GSM8K against every file of `benchmarks.sources` that is not mathematics, in chats. Half of the texts of a file are
fitted, the others are measured, and MMLU's mathematics, of which nothing is fitted. A text's score is that of its last
token, or of the window of it that looks most like the skill. Nothing is chosen on what is measured. Directions of one
layer that were fitted on two halves of the texts say how alike directions are that differ by chance alone: only what is
less alike than that differs by layer. Writes `results/probes.NAME.json` and `.png`.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.prompts.splits import data_folder
from benchmarks.report import RESULTS, publish
from benchmarks.sources import FILES, texts
from guards.artifact.canaries import CANARY_DATE
from guards.calibration.accumulated import turns_of
from guards.calibration.activations import Pass, TokenIds, Tokens
from guards.calibration.curves import HIGHEST, LOWEST, log_auroc
from guards.calibration.drawing import new_figure, png
from guards.calibration.statistics import auroc
from guards.contract.turns import Turns
from guards.inside.taps import Purpose, install
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.probe.fit import Probe, dispersed_layers, fit_probe, third
from guards.methods.probe.shown import cosines, draw_cosines, draw_weights
from guards.methods.spans.guard import LayerWeights
from guards.methods.spans.passes import WindowsOf, last_token, windows_of
from guards.model.frames import CHAT_FRAME
from guards.model.sites import Place, Site

FORGET = "mathematics/gsm8k"
UNSEEN = "mathematics/mmlu"
AGGREGATIONS: Mapping[str, WindowsOf] = {"last": last_token, "spans": windows_of}
RESAMPLES = 200
FAR = 1 / 2
"""Share of the model between two layers that count as far apart."""


@dataclass(frozen=True)
class Text:
    """A prompt of a file. `half`: 0 and 1 are fitted, together or apart, and None is measured."""

    ids: TokenIds
    file: str
    half: int | None

    @property
    def skill(self) -> bool:
        """Whether it is mathematics."""
        return self.file in (FORGET, UNSEEN)


@dataclass(frozen=True)
class Seen:
    """Of one aggregation: windows' vectors by layer [N, F], and the text of each, int64 [N]."""

    x_NF: Mapping[int, Tensor]
    text_N: Tensor


def prompts(loaded: LoadedModel, forget: int, retain: int) -> list[Text]:
    """So many of GSM8K, half as many of MMLU's mathematics, and so many of each other file, every other one fitted."""
    codec, found = loaded.codec.on_day(CANARY_DATE), []
    others = [name for name in FILES if not name.startswith("mathematics/")]
    for name, count in ((FORGET, forget), (UNSEEN, forget // 2), *((each, retain) for each in others)):
        for index, text in enumerate(texts(data_folder(), FILES[name], count, seed=0)):
            half = None if index % 2 or name == UNSEEN else index // 2 % 2
            found.append(Text(codec.encode_frame(CHAT_FRAME, text), name, half))
    return found


class _Kept(nn.Module):
    """The newest vectors of one site and layer."""

    x_TF: Tensor

    def forward(self, x_TF: Tensor) -> None:
        """Keeps them."""
        self.x_TF = x_TF


def see(
    loaded: LoadedModel, of: Sequence[Text], turns: Sequence[Turns], layers_of: Mapping[Site, Sequence[int]]
) -> dict[Site, dict[str, Seen]]:
    """What every aggregation fits at every site, in one pass; windows are means of their tokens' vectors.

    Text by text, so that nothing is padded: beside the residual stream, which is handed over behind each block, what
    the block's other sites held is kept.
    """
    numbers: dict[str, list[Tensor]] = {}
    found: dict[Site, dict[str, Seen]] = {site: {} for site in layers_of}
    for name, windows in AGGREGATIONS.items():
        text_N: list[int] = []
        numbers[name] = []
        for index, each in enumerate(turns):
            window_T = windows(each, None)
            numbers[name].append(torch.where(window_T >= 0, window_T + len(text_N), -1))
            text_N += [index] * (int(window_T.max()) + 1)
        for site, layers in layers_of.items():
            empty = {layer: torch.zeros(len(text_N), loaded.width(site)) for layer in layers}
            found[site][name] = Seen(empty, torch.tensor(text_N))
    beside = [Place(layer, site) for site, layers in layers_of.items() if site is not Site.RESIDUAL for layer in layers]
    kept = {place: _Kept() for place in beside}

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        for site, by_name in found.items():
            if layer in layers_of[site]:
                here_TF = x_TF if site is Site.RESIDUAL else kept[Place(layer, site)].x_TF
                for name, seen in by_name.items():
                    number_T = numbers[name][int(example_T[0])]
                    inside_T = number_T >= 0
                    seen.x_NF[layer].index_add_(0, number_T[inside_T], here_TF[inside_T].float())

    with ExitStack() as stack:
        for place, keeps in kept.items():
            stack.callback(install(loaded.sites.tap(place), Purpose.COPY, keeps, loaded.model.dtype))
        every = Pass(Site.RESIDUAL, tuple(layers_of[Site.RESIDUAL]), Tokens.ALL, batch_tokens=1)
        loaded.stream(every, [each.ids for each in of], consume)
    for by_name in found.values():
        for name, seen in by_name.items():
            number_T = torch.cat(numbers[name])
            size_N1 = torch.bincount(number_T[number_T >= 0])[:, None]
            for x_NF in seen.x_NF.values():
                x_NF /= size_N1
    return found


def fitted(seen: Seen, of: Sequence[Text], layer: int, halves: Sequence[int]) -> Probe | None:
    """A probe of the texts of these halves, every one of a side counting the same."""
    sides = []
    for skill in (True, False):
        member_E = torch.tensor([each.skill is skill and each.half in halves for each in of])
        kept_N = member_E[seen.text_N]
        text_N = seen.text_N[kept_N]
        share_N = 1 / torch.bincount(text_N, minlength=len(of))[text_N].double()
        sides.append((seen.x_NF[layer][kept_N], share_N / share_N.sum() / 2))
    return fit_probe(layer, sides)


def scores(seen: Seen, of: Sequence[Text], term: LayerWeights) -> Tensor:
    """Of every text the smallest value of its windows, float32 [E]."""
    value_N = seen.x_NF[term.layer] @ term.weight_F - term.offset
    return torch.full((len(of),), torch.inf).scatter_reduce_(0, seen.text_N, value_N, "amin")


def area(forget_E: Tensor, retain_E: Tensor, seed: int) -> dict[str, object]:
    """log-AUROC from the lowest rate that so many others show, with a 95 % interval over resampled texts."""
    lowest = max(LOWEST, 1 / len(retain_E))
    draw = torch.Generator().manual_seed(seed)

    def found(forget: Tensor, retain: Tensor) -> float:
        value = log_auroc(forget, retain, lowest)
        assert value is not None, "the lowest rate is what they show"
        return value

    def again(x_E: Tensor) -> Tensor:
        return x_E[torch.randint(len(x_E), (len(x_E),), generator=draw)]

    drawn = torch.tensor([found(again(forget_E), again(retain_E)) for _ in range(RESAMPLES)])
    interval = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"log_auroc": found(forget_E, retain_E), "interval": interval, "auroc": auroc(forget_E, retain_E)}


def rows_of(
    site: Site, aggregation: str, layer: int, count: int, of: Sequence[Text], score_E: Tensor
) -> list[dict[str, object]]:
    """One probe's figures, of each file of the skill against all others that were not fitted."""
    others_E = torch.tensor([not each.skill and each.half is None for each in of])
    common = {"site": site.value, "aggregation": aggregation, "layer": layer, "third": third(layer, count)}
    found = []
    for file in (FORGET, UNSEEN):
        own_E = torch.tensor([each.file == file and each.half is None for each in of])
        found.append({**common, "measured": file.split("/")[1], **area(score_E[own_E], score_E[others_E], layer)})
    return found


def alike(probes: Sequence[Probe], split: Sequence[tuple[Probe, Probe]], count: int) -> dict[str, object]:
    """How alike directions are: of neighbours, of layers far apart, and of one layer fitted on two halves."""
    terms = [each.term for each in probes]
    cosine_LL = cosines(terms)
    far = [
        float(cosine_LL[i, j])
        for i, one in enumerate(terms)
        for j, other in enumerate(terms)
        if other.layer - one.layer >= FAR * count
    ]
    return {
        "layers": [each.layer for each in terms],
        "matrix": [[round(each, 3) for each in line] for line in cosine_LL.tolist()],
        "neighbours": float(cosine_LL.diagonal(1).mean()),
        "far_apart": sum(far) / len(far),
        "halves": sum(float(cosines([a.term, b.term])[0, 1]) for a, b in split) / len(split),
        "kurtosis": [_kurtosis(each.weight_F) for each in terms],
    }


def _kurtosis(weight_F: Tensor) -> float:
    """0 of a Gaussian, more where few weights are large."""
    centred_F = (weight_F - weight_F.mean()).double()
    return round(float(centred_F.pow(4).mean() / centred_F.square().mean().square()) - 3, 2)


def picture(rows: Sequence[Mapping[str, object]], terms: Sequence[LayerWeights], name: str) -> bytes:
    """log-AUROC by layer, and cosines and weights of the residual stream's directions."""
    figure, (areas, matrix, weights) = new_figure(1, 3, 5.0, 4.2)
    for site in dict.fromkeys(each["site"] for each in rows):
        for aggregation, line in zip(AGGREGATIONS, ("--", "-"), strict=True):
            wanted = (site, aggregation, UNSEEN.split("/")[1])
            own = [each for each in rows if (each["site"], each["aggregation"], each["measured"]) == wanted]
            places = [each["layer"] for each in own], [each["log_auroc"] for each in own]
            areas.plot(*places, linestyle=line, marker=".", label=f"{site}, {aggregation}")
    areas.set_xlabel("layer")
    areas.set_title(f"{name}: log-AUROC, MMLU's mathematics", fontsize=10)
    areas.grid(alpha=0.3)
    areas.legend(fontsize=7)
    figure.colorbar(draw_cosines(matrix, terms), ax=matrix, fraction=0.046)
    draw_weights(weights, terms[:: max(1, len(terms) // 6)])
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--name", help="of the result (default: the folder's)")
    parser.add_argument("--forget", type=int, default=48, help="texts of GSM8K (default %(default)s)")
    parser.add_argument("--retain", type=int, default=8, help="texts of each other file (default %(default)s)")
    args = parser.parse_args()
    name, began = args.name or args.model.resolve().name, time.monotonic()
    loaded = load_model(args.model, device="cpu")
    count = loaded.identity.layers
    of = prompts(loaded, args.forget, args.retain)
    turns = [turns_of(each.ids, loaded.codec.openings) for each in of]
    rows: list[dict[str, object]] = []
    kept: dict[str, list[Probe]] = {each: [] for each in AGGREGATIONS}
    split: dict[str, list[tuple[Probe, Probe]]] = {each: [] for each in AGGREGATIONS}
    some = dispersed_layers(count)
    layers_of = {Site.RESIDUAL: range(count), Site.KEY: some, Site.ATTENTION: some}
    for site, by_name in see(loaded, of, turns, layers_of).items():
        for aggregation, seen in by_name.items():
            for layer in layers_of[site]:
                probe = fitted(seen, of, layer, (0, 1))
                if probe is None:
                    continue
                rows += rows_of(site, aggregation, layer, count, of, scores(seen, of, probe.term))
                if site is Site.RESIDUAL:
                    kept[aggregation].append(probe)
                    halves = fitted(seen, of, layer, (0,)), fitted(seen, of, layer, (1,))
                    if halves[0] is not None and halves[1] is not None:
                        split[aggregation].append((halves[0], halves[1]))
    figures = RESULTS / f"probes.{name}.png"
    figures.write_bytes(picture(rows, [each.term for each in kept["last"]], name))
    known, unseen = ([each for each in of if each.file == file] for file in (FORGET, UNSEEN))
    others = [each for each in of if not each.skill]
    counts = {
        "gsm8k_fitted": sum(each.half is not None for each in known),
        "gsm8k_measured": sum(each.half is None for each in known),
        "mmlu_measured": len(unseen),
        "others_fitted": sum(each.half is not None for each in others),
        "others_measured": sum(each.half is None for each in others),
    }
    publish(
        f"probes.{name}",
        rows,
        model=name,
        texts=counts,
        rates=[max(LOWEST, 1 / counts["others_measured"]), HIGHEST],
        directions={each: alike(kept[each], split[each], count) for each in AGGREGATIONS},
        seconds=round(time.monotonic() - began),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
