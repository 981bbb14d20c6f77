"""One streaming pass: what a consumer sees does not depend on batching or padding, in any family."""

import pytest
import torch
from torch import Tensor

from guards.calibration.activations import Pass, TokenIds, Tokens
from guards.errors import AttachError, CalibrationError
from guards.inside.transformers.capture import make_batch, plan_batches, stream
from guards.inside.transformers.loading import LoadedModel
from guards.model.sites import SITES, End, Place, Site
from tests.guards.attached import hooks
from tests.guards.tiny import tiny_loaded
from tests.models import CONFIGS, D_MODEL, LAYERS, tokens

LENGTHS = (5, 1, 9, 3, 3, 12, 2)
EXAMPLES: list[TokenIds] = [tuple(tokens(n, seed=n + 100 * i).tolist()) for i, n in enumerate(LENGTHS)]
RTOL, ATOL = 1e-4, 1e-5
"""float32 matrix products of other shapes sum in another order."""


def _collect(
    loaded: LoadedModel, site: Site, layer: int, wanted: Tokens, *, batch_tokens: int, skip: tuple[int, int] = (0, 0)
) -> dict[int, Tensor]:
    """Activations [T, F] by example, in order of position."""
    seen: dict[int, Tensor] = {}

    def consume(at: int, x_TF: Tensor, example_T: Tensor) -> None:
        assert at == layer
        for example in dict.fromkeys(example_T.tolist()):
            assert example not in seen
            seen[example] = x_TF[example_T == example].clone()

    stream(loaded, Pass(site, (layer,), wanted, skip, batch_tokens), EXAMPLES, consume)
    return seen


def _alone(loaded: LoadedModel, site: Site, layer: int, ids: TokenIds) -> Tensor:
    """The same activations from one plain call of the whole model, by a hook of the test's own.

    Without a cache, as `stream` runs it: with one, linear attention reads a single token by another kernel.
    """
    kept: list[Tensor] = []
    module = loaded.sites.tap(Place(layer, site)).module
    if site in (Site.PRE_ACTIVATION, Site.RESIDUAL):
        handle = module.register_forward_hook(
            lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
    else:
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0].reshape(len(ids), -1)[:, : loaded.width(site)]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_batched_and_padded_equals_one_at_a_time(kind: str) -> None:
    loaded = tiny_loaded(kind)
    for site in (each for each in Site if SITES[each].end is not End.BOTH):
        batched = _collect(loaded, site, 1, Tokens.ALL, batch_tokens=36)
        assert sorted(batched) == list(range(len(EXAMPLES)))
        for example, ids in enumerate(EXAMPLES):
            torch.testing.assert_close(batched[example], _alone(loaded, site, 1, ids), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_residual_site_is_what_the_model_calls_its_hidden_states(kind: str) -> None:
    """Bit for bit, in every layer. The model's last ones are past its final norm: there a hook of the test's own."""
    loaded = tiny_loaded(kind)
    assert loaded.width(Site.RESIDUAL) == D_MODEL
    seen: dict[tuple[int, int], Tensor] = {}

    def consume(layer: int, x_TD: Tensor, example_T: Tensor) -> None:
        (example,) = set(example_T.tolist())
        seen[layer, example] = x_TD.clone()

    layers = tuple(range(LAYERS))
    stream(loaded, Pass(Site.RESIDUAL, layers, Tokens.ALL, batch_tokens=1), EXAMPLES, consume)
    assert len(seen) == LAYERS * len(EXAMPLES)
    for example, ids in enumerate(EXAMPLES):
        given = {"input_ids": torch.tensor([ids]), "use_cache": False}
        with torch.no_grad():
            # The first is the embedding's.
            hidden = loaded.model(**given, output_hidden_states=True).hidden_states[1:]
        for layer in layers[:-1]:
            assert torch.equal(seen[layer, example], hidden[layer][0])
        assert torch.equal(seen[LAYERS - 1, example], _alone(loaded, Site.RESIDUAL, LAYERS - 1, ids))
        assert not torch.equal(seen[1, example], seen[0, example])


def test_last_and_skipped_tokens_are_those_of_the_whole() -> None:
    loaded = tiny_loaded()
    whole = _collect(loaded, Site.KEY, 2, Tokens.ALL, batch_tokens=1000)
    last = _collect(loaded, Site.KEY, 2, Tokens.LAST, batch_tokens=1000)
    rest = _collect(loaded, Site.KEY, 2, Tokens.ALL, batch_tokens=1000, skip=(2, 1))
    both = _collect(loaded, Site.KEY, 2, Tokens.ALL_AND_LAST, batch_tokens=1000, skip=(2, 1))
    for example, length in enumerate(LENGTHS):
        torch.testing.assert_close(last[example], whole[example][-1:])
        if length > 3:
            torch.testing.assert_close(rest[example], whole[example][2:-1])
            torch.testing.assert_close(both[example], whole[example][2:])
        else:
            assert example not in rest
            torch.testing.assert_close(both[example], last[example])


def test_padding_would_matter_if_it_were_attended_to() -> None:
    """Positive control for the tests above: the padded row does differ without its mask."""
    loaded = tiny_loaded()
    batch = make_batch(EXAMPLES, [0, 5], loaded.device)
    short = len(EXAMPLES[0])
    with torch.no_grad():
        left = torch.roll(batch.ids_BT[:1], batch.ids_BT.shape[1] - short, dims=1)
        padded = loaded.model(input_ids=left).logits[0, -1]
        alone = loaded.model(input_ids=batch.ids_BT[:1, :short]).logits[0, -1]
    assert not torch.allclose(padded, alone, rtol=1e-2)


def test_batches_hold_every_example_once_within_the_budget() -> None:
    groups = plan_batches(LENGTHS, 12)
    assert sorted(index for group in groups for index in group) == list(range(len(LENGTHS)))
    assert groups[0] == [5]
    for group in groups:
        assert len(group) == 1 or max(LENGTHS[index] for index in group) * len(group) <= 12
    assert plan_batches(LENGTHS, 1) == [[index] for index in sorted(range(7), key=lambda i: (-LENGTHS[i], i))]


def test_hooks_come_off_even_when_a_consumer_fails() -> None:
    loaded = tiny_loaded()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(loaded, Pass(Site.KEY, (0, 1), Tokens.LAST, batch_tokens=64), EXAMPLES, fail)
    assert hooks(loaded.model) == 0


def test_a_layer_that_never_runs_is_an_error() -> None:
    loaded = tiny_loaded()
    loaded.model.model.layers = loaded.model.model.layers[:2]
    with pytest.raises(AttachError, match=r"ran at layers \[0\], wanted \[0, 2\]"):
        stream(loaded, Pass(Site.KEY, (0, 2), Tokens.LAST, batch_tokens=64), EXAMPLES, lambda *_: None)


def test_the_pass_ends_at_the_last_wanted_layer() -> None:
    loaded = tiny_loaded()
    ran: list[int] = []
    for index, layer in enumerate(loaded.model.model.layers):
        layer.register_forward_pre_hook(lambda *_, at=index: ran.append(at))
    stream(loaded, Pass(Site.KEY, (1,), Tokens.LAST, batch_tokens=64), EXAMPLES[:1], lambda *_: None)
    assert ran == [0, 1]


@pytest.mark.parametrize(
    ("batch_tokens", "message"),
    [
        (36, "3 examples of up to 12 tokens in a batch: lower `batch_tokens`"),
        (8, "one example of 12 tokens, the least that a batch holds: leave out"),
    ],
)
def test_too_little_memory_says_what_helps(batch_tokens: int, message: str) -> None:
    """An example alone is no smaller with a lower `batch_tokens`."""
    loaded = tiny_loaded()

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.model.layers[0].mlp.register_forward_pre_hook(fail)
    with pytest.raises(CalibrationError, match=f"out of memory with {message}"):
        _collect(loaded, Site.KEY, 1, Tokens.ALL, batch_tokens=batch_tokens)
