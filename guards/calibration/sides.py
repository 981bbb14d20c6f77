"""One pass over both sides of a calibration, and its progress."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import Corpus
from guards.model.sites import Site

Advance = Callable[[int, str], None]
"""Told how many tokens are done, and of what step."""


@contextmanager
def progress_bar(total: int, shown: bool, unit: str = "tok") -> Iterator[Advance]:
    """A counter of tokens, or of `unit`, with rate and time left on stderr; yields `advance(tokens, what)`."""
    with tqdm(total=total, unit=unit, unit_scale=unit == "tok", disable=not shown, dynamic_ncols=True) as bar:

        def advance(tokens: int, what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update(tokens)

        yield advance


class SidesFitter(Protocol):
    """Takes the tokens of both sides, layer by layer."""

    def update(self, layer: int, x_TF: Tensor, *, forget: bool) -> None: ...


def stream_sides(
    model: Activations,
    site: Site,
    fitter: SidesFitter,
    corpora: Sequence[Corpus],
    *,
    batch_tokens: int | None,
    advance: Advance,
) -> None:
    """One pass over both sides in every frame: the fitter sees all tokens of all layers."""
    for corpus in corpora:
        is_forget = corpus.role == "forget"

        def consume(layer: int, x_TF: Tensor, _: Tensor, is_forget: bool = is_forget) -> None:
            fitter.update(layer, x_TF, forget=is_forget)

        for examples in corpus.encoded.values():
            wanted = Pass(site, tuple(range(model.identity.layers)), Tokens.ALL, batch_tokens=batch_tokens)
            model.stream(wanted, examples, consume, lambda tokens: advance(tokens, "fit"))
