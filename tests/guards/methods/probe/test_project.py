"""Projections against their formula by plain hooks: what moves, what does not, and for whom.

Suffixes: S sequences, T tokens, D the residual stream's width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.artifact.store import read_artifact
from guards.core.verdict import Reading
from guards.errors import ArtifactError, AttachError
from guards.inside.transformers.sites import find_sites
from guards.methods.probe_project.guard import ProjectionGuard
from guards.methods.probe_project.stored import BoundProjection
from guards.methods.registry import PROBE_PROJECT, load_guard
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.attached import KINDS, LENGTH, attach, read, take
from tests.guards.samples import projections, write_raw
from tests.models import D_MODEL, EXPERTS, LAYERS, tiny_model, tokens


def block(model: nn.Module, layer: int) -> nn.Module:
    return find_sites(model).tap(Place(layer, Site.RESIDUAL)).module


def beyond(h_TD: Tensor, guard: ProjectionGuard, layer: int) -> Tensor:
    """w.h + b by definition, float64."""
    (of,) = [each for each in guard.boundaries if each.layer == layer]
    return h_TD.double() @ of.w_D.double() + of.b


@contextmanager
def by_hand(model: nn.Module, guard: ProjectionGuard) -> Iterator[None]:
    """The formula on whole outputs of blocks, by hooks of the test's own."""
    handles = []
    for of in guard.boundaries:

        def project(_: nn.Module, __: Any, output: Any, of: Any = of) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            step = guard.beta * (h.float() @ of.w_D + of.b).clamp_min(0)
            h = (h.float() - step[..., None] * of.w_D).to(h.dtype)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        handles.append(block(model, of.layer).register_forward_hook(project))
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*KINDS, *sorted(EXPERTS)])
def test_a_model_says_what_the_formula_makes_it_say(kind: str, dtype: torch.dtype) -> None:
    model, ids, guard = tiny_model(kind).to(dtype), tokens(2, LENGTH), projections()
    plain = model(input_ids=ids).logits
    with by_hand(model, guard):
        wanted = model(input_ids=ids).logits
    with attach(model, project=guard) as attachment:
        got = model(input_ids=ids).logits
        take(attachment, 2 * LENGTH)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(model(input_ids=ids).logits, plain), "the guard is off again"
    assert not torch.allclose(wanted, plain, atol=1e-3)  # positive control


@torch.no_grad()
def around(dtype: torch.dtype, guard: ProjectionGuard, kind: str = "llama") -> tuple[Tensor, Tensor, Tensor]:
    """The residual stream of some tokens before and after the guard's one layer, and what it said of them."""
    model, ids, seen = tiny_model(kind).to(dtype), tokens(8, LENGTH), list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        h = output[0] if isinstance(output, tuple) else output
        seen.append(h.reshape(-1, D_MODEL).clone())

    module = block(model, guard.layers[0])
    module.register_forward_hook(keep)
    with attach(model, project=guard) as attachment:
        module.register_forward_hook(keep)
        said_T = read(model, attachment, ids).scores["project"][:, 0]
    return seen[0], seen[1], said_T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_what_lies_on_the_other_side_is_left_bit_for_bit(dtype: torch.dtype, beta: float) -> None:
    guard = projections(1, beta=beta)
    before_TD, after_TD, said_T = around(dtype, guard)
    beyond_T = beyond(before_TD, guard, 1)
    assert 10 < int((beyond_T > 0).sum()) < 38, "positive control: some of both"
    same_T = (before_TD.view(torch.uint8) == after_TD.view(torch.uint8)).all(dim=1)
    assert torch.equal(same_T, beyond_T <= 0)
    assert torch.equal(said_T > 0, beyond_T > 0)
    torch.testing.assert_close(said_T.double(), beta * beyond_T.clamp_min(0) / 2.0, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_with_beta_1_the_probe_reads_the_smaller_of_what_it_read_and_0(dtype: torch.dtype) -> None:
    """Up to the rounding of h' to its dtype, of which w is shown at most a unit roundoff of its length."""
    guard = projections(1, beta=1.0)
    before_TD, after_TD, _ = around(dtype, guard)
    wanted_T, got_T = beyond(before_TD, guard, 1).clamp_max(0), beyond(after_TD, guard, 1)
    of_dtype, of_float32 = torch.finfo(dtype).eps / 2, 8 * torch.finfo(torch.float32).eps
    room_T = (of_dtype + of_float32) * after_TD.double().norm(dim=1)
    assert bool(((got_T - wanted_T).abs() <= room_T).all())
    assert bool(((beyond(before_TD, guard, 1) - wanted_T).abs() > room_T).any()), "positive control"


def test_nothing_moves_but_along_w() -> None:
    guard = projections(1, beta=2.0)
    before_TD, after_TD, _ = around(torch.float32, guard)
    moved_TD, w_D = (after_TD - before_TD).double(), guard.boundaries[0].w_D.double()
    torch.testing.assert_close(moved_TD, (moved_TD @ w_D)[:, None] * w_D, rtol=0, atol=1e-5)
    torch.testing.assert_close(beyond(after_TD, guard, 1), -beyond(before_TD, guard, 1).abs(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_sequences_of_one_batch_have_the_model_that_each_would_have_alone() -> None:
    model, ids = tiny_model("llama"), tokens(3, LENGTH)
    off = [{"project"}, set[str](), {"project"}]
    with attach(model, project=projections()) as attachment:
        alone = []
        for row, of in zip(ids, off, strict=True):
            attachment.switch([(LENGTH, of)])
            alone.append(model(input_ids=row[None]).logits)
            take(attachment, LENGTH)
        attachment.switch([(LENGTH, of) for of in off])
        mixed = model(input_ids=ids).logits
        said_SL = take(attachment, 3 * LENGTH).scores["project"].reshape(3, LENGTH)
        everywhere = model(input_ids=ids).logits
        take(attachment, 3 * LENGTH)
    torch.testing.assert_close(mixed, torch.cat(alone))
    assert (said_SL > 0).any(dim=1).tolist() == [False, True, False]
    plain = model(input_ids=ids).logits
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]), "off, it is the model as it was"
    assert not torch.allclose(everywhere[0], mixed[0], atol=1e-3)  # positive control


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_equal_the_whole(chunk: int) -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    with attach(model, project=projections()) as attachment:
        whole = model(input_ids=ids).logits
        said_T = take(attachment, LENGTH).scores["project"]
        cache, logits, said = None, [], []
        for part in torch.split(ids, chunk, dim=1):
            output = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
            said.append(take(attachment, part.shape[1]).scores["project"])
    torch.testing.assert_close(torch.cat(logits, dim=1), whole)
    torch.testing.assert_close(torch.cat(said), said_T)
    assert float(said_T.max()) > 0


@torch.no_grad()
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("off", [set[str](), {"project"}], ids=["on", "off"])
def test_one_broken_value_of_one_token_is_invalid_there(bad: float, off: set[str]) -> None:
    model, ids = tiny_model("llama"), tokens(1, LENGTH)

    def break_one(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, 3, 5] = bad
        return output

    block(model, 2).register_forward_hook(break_one)
    with attach(model, project=projections()) as attachment:
        attachment.switch([(LENGTH, off)])
        codes = read(model, attachment, ids).codes_RG[:, 0]
    assert codes.tolist() == [Reading.INVALID if row == 3 else Reading.OUTSIDE for row in range(LENGTH)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_change_that_overflows_is_invalid(dtype: torch.dtype) -> None:
    """In float16 there is nothing for 16 times the way to the boundary; in bfloat16 there is."""
    guard = projections(1, beta=16.0)
    (of,) = guard.boundaries
    skill_D = 6e4 * of.w_D.sign()
    h_TD = torch.stack([skill_D, -skill_D, skill_D]).to(dtype)
    assert bool(torch.isfinite(h_TD).all())
    bound = BoundProjection(guard, torch.device("cpu"), WHOLE)
    act = bound.at(Place(1, Site.RESIDUAL), D_MODEL)
    said_T = act(h_TD, torch.arange(3), torch.tensor([True, True, False]))[:, 0]
    assert torch.equal(torch.isfinite(said_T), torch.isfinite(h_TD).all(dim=1))
    assert torch.isfinite(said_T).tolist() == [dtype is torch.bfloat16, True, True]
    assert said_T[1:].tolist() == [0, 0]


def test_a_residual_stream_of_another_width_is_refused() -> None:
    bound = BoundProjection(projections(), torch.device("cpu"), WHOLE)
    with pytest.raises(AttachError, match=rf"residual stream is {D_MODEL + 2} wide, not {D_MODEL}"):
        bound.at(Place(0, Site.RESIDUAL), D_MODEL + 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers": [{"layer": layer, "b": 0.5, "usual": 1.0} for layer in (1, 0)]}, "wanted them ascending"),
        ({"layers": [{"layer": LAYERS, "b": 0.5, "usual": 1.0}]}, rf"below {LAYERS}"),
        ({"layers": []}, "parameters.layers"),
        ({"beta": 0.0}, "parameters.beta"),
        ({"beta": -1.0}, "parameters.beta"),
        ({"site": "residual"}, "parameters.site"),
        ({"layers": [{"layer": 1, "b": 0.5, "usual": 1.0}]}, "layer.0.w"),
    ],
)
def test_what_a_loader_refuses(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    parameters, tensors = PROBE_PROJECT.dump(projections())
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(read_artifact(write_raw(tmp_path / "a", "probe", {**parameters, **change}, dict(tensors))))


@pytest.mark.parametrize("size", [0.0, 0.99, 1.01])
def test_a_direction_that_is_not_of_length_1_is_refused(size: float, tmp_path: Path) -> None:
    guard = projections(1)
    scaled = replace(guard, boundaries=(replace(guard.boundaries[0], w_D=size * guard.boundaries[0].w_D),))
    parameters, tensors = PROBE_PROJECT.dump(scaled)
    with pytest.raises(ArtifactError, match=r"layer\.1\.w: got a direction of length .*, wanted 1"):
        load_guard(read_artifact(write_raw(tmp_path / "a", "probe", parameters, dict(tensors))))
