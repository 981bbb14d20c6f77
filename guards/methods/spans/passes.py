"""The two passes of a calibration over spans: windows of the fit part, and every other example's values.

Suffixes: E examples, T tokens of an example, N windows, F feed-forward width (d_ff), C sets of layers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guards.calibration.activations import Pass, Tokens
from guards.calibration.sides import Advance
from guards.calibration.statistics import MIN_VECTORS
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.methods.spans.examples import Example, SpanJob
from guards.methods.spans.guard import NOT_FINITE, LayerWeights, Windows
from guards.model.sites import Site

WINDOW = 16
"""Tokens of a window (Cunningham et al. 2026, arXiv 2601.04603)."""
FIT_WINDOWS = 6000
"""Windows a side that are fitted, as many of each source as far as it has them."""
FIT_BYTES = 3 << 30
"""Of both sides' windows in all layers. Fewer than FIT_WINDOWS are fitted from about 11,000 feed-forward neurons on, in
six layers (Llama-3-8B: 4681), so that they fit beside the weights.
"""


WindowsOf = Callable[[Turns, tuple[int, int] | None], Tensor]
"""The window of each token of a text, counted from 0, int64 [T]; -1 where it is of none. Given whose words they are,
and which tokens are its own.
"""


def windows_of(turns: Turns, own: tuple[int, int] | None = None) -> Tensor:
    """Windows of WINDOW tokens or a little more or less: of `own`, or of what the newest message asks."""
    if own is None:
        opened = (turns.opens & ~turns.written).nonzero().flatten().tolist()
        own = (opened[-1] + 1 if opened else 0, len(turns.counted))
        within_T = turns.counted & ~turns.written
    else:
        within_T = turns.counted.clone()
    within_T[: own[0]], within_T[own[1] :] = False, False
    tokens = int(within_T.sum())
    window_T = torch.full_like(within_T, -1, dtype=torch.int64)
    window_T[within_T] = torch.arange(tokens) * max(1, round(tokens / WINDOW)) // max(1, tokens)
    return window_T


def last_token(turns: Turns, _: tuple[int, int] | None = None) -> Tensor:
    """One window, the last token of a text, whoever wrote it."""
    window_T = torch.full_like(turns.counted, -1, dtype=torch.int64)
    window_T[-1] = 0
    return window_T


def _by_example(example_T: Tensor) -> list[tuple[int, int]]:
    """Examples of a batch, whose tokens lie together, and how many each has."""
    example_E, count_E = torch.unique_consecutive(example_T.cpu(), return_counts=True)
    return list(zip(example_E.tolist(), count_E.tolist(), strict=True))


def kept_windows(source_N: Sequence[str], most: int) -> Tensor:
    """Indices of at most so many windows, ascending, int64: all of small sources, and evenly spaced ones of large."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(source_N):
        members.setdefault(name, []).append(index)
    kept, left = [], most
    for done, own in enumerate(sorted(members.values(), key=len)):
        few = min(len(own), left // (len(members) - done))
        kept += [own[i * len(own) // few] for i in range(few)]
        left -= few
    return torch.tensor(sorted(kept), dtype=torch.int64)


def most_windows(layers: int, width: int) -> int:
    """Windows a side that are fitted, of vectors so wide in so many layers."""
    return max(MIN_VECTORS, min(FIT_WINDOWS, FIT_BYTES // (2 * layers * width * torch.float32.itemsize)))


def read_windows(
    job: SpanJob, examples: Sequence[Example], turns: Sequence[Turns], window_of_each: WindowsOf, advance: Advance
) -> Windows:
    """The windows of one side's fit part. Every source counts the same, and so does every surrounding."""
    window_of: list[Tensor] = []
    source_N: list[str] = []
    text_N: list[int] = []
    for index, (example, turns_T) in enumerate(zip(examples, turns, strict=True)):
        window_T = window_of_each(turns_T, example.own)
        window_of.append(torch.where(window_T >= 0, window_T + len(source_N), -1))
        found = int(window_T.max()) + 1
        source_N += [example.source or example.row] * found
        text_N += [index] * found
    site = Site(job.options.site)
    width = job.model.width(site)
    kept = kept_windows(source_N, most_windows(len(job.layers), width))
    row_N = torch.full((len(source_N) + 1,), -1).index_put((kept,), torch.arange(len(kept)))
    window_of = [row_N[window_T] for window_T in window_of]  # -1 finds the last row
    tokens_T = torch.cat(window_of)
    size_N = torch.bincount(tokens_T[tokens_T >= 0], minlength=len(kept)).float()
    device = job.model.device
    sums = {layer: torch.zeros(len(kept), width, device=device) for layer in job.layers}

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        row_T = torch.cat([window_of[example] for example, _ in _by_example(example_T)])
        inside_T = row_T >= 0
        sums[layer].index_add_(0, row_T[inside_T].to(device), x_TF[inside_T.to(device)].float())

    wanted = Pass(site, job.layers, Tokens.ALL, batch_tokens=job.options.batch_tokens)
    job.model.stream(wanted, [each.ids for each in examples], consume, lambda tokens: advance(tokens, "fit"))
    if not all(bool(torch.isfinite(each).all()) for each in sums.values()):
        raise CalibrationError(NOT_FINITE)
    names = [source_N[i] for i in kept.tolist()]
    weight_N = torch.tensor([1 / names.count(name) for name in names], dtype=torch.float64)
    for sum_NF in sums.values():
        sum_NF /= size_N[:, None].to(device)  # in place: a copy would be as large again
    return Windows(sums, weight_N, torch.tensor(text_N, dtype=torch.int64)[kept])


def read_values(
    job: SpanJob, examples: Sequence[Example], sets: Sequence[tuple[LayerWeights, ...]], advance: Advance
) -> list[Tensor]:
    """Each example's values under each set of layers, float32 [T, C]. Raises CalibrationError where one is not finite:
    served, it is an error, and here it would count as a text that does not fire.
    """
    values = [torch.zeros(len(each.ids), len(sets)) for each in examples]
    having = {
        layer: {index: term for index, terms in enumerate(sets) for term in terms if term.layer == layer}
        for layer in job.layers
    }

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        terms = having[layer]
        weight_FC = torch.stack([term.weight_F for term in terms.values()], dim=1).to(x_TF.device)
        value_TC = (x_TF.float() @ weight_FC).cpu() - torch.tensor([term.offset for term in terms.values()])
        counts = _by_example(example_T)
        for (example, _), part_TC in zip(counts, torch.split(value_TC, [count for _, count in counts]), strict=True):
            values[example][:, list(terms)] += part_TC

    wanted = Pass(Site(job.options.site), job.layers, Tokens.ALL, batch_tokens=job.options.batch_tokens)
    job.model.stream(wanted, [each.ids for each in examples], consume, lambda tokens: advance(tokens, "read"))
    if not all(bool(torch.isfinite(each).all()) for each in values):
        raise CalibrationError(NOT_FINITE)
    return values
