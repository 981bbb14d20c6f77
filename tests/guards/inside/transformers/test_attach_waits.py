"""A guarded pass on transformers never waits for the device, but where it hands out its rows."""

import pytest
import torch

from guards.contract.guard import fuse
from guards.inside.transformers.attach import _Site
from guards.methods.cube.guard import CubeBank
from guards.methods.spans.guard import SpanBank
from tests.guards.attached import attach
from tests.guards.contract.test_accumulate_waits import nothing_waits
from tests.guards.inside.transformers.test_attach_spans import IDS, packed
from tests.guards.samples import cubes, spans
from tests.models import D_FF, tiny_model


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 2])
def test_nothing_in_a_pass_waits(past: int) -> None:
    model = tiny_model("llama")
    with attach(model, spans=spans(), more=spans(), cube=cubes()) as attachment:
        attachment.books._looks = False
        attachment.books.reserve(200)
        sites = [each for each in model.modules() if isinstance(each, _Site)]
        new_1T, kwargs = IDS[:, past:], packed(past)
        rows_R, x_TF = torch.tensor([new_1T.shape[1] - 1]), torch.randn(new_1T.shape[1], D_FF)
        with nothing_waits():
            attachment._begin(model, (), {"input_ids": new_1T, "logits_to_keep": rows_R, **kwargs})
            for site in sites:
                site(x_TF)
            rows = attachment.take(1)
    assert sites
    assert not rows.missing
    assert torch.isfinite(rows.rows_RX).all() == (past == 0), "nobody wrote the slots before"


@pytest.mark.parametrize(
    "banks",
    [
        [SpanBank(torch.randn(1, 6), torch.randn(1), [parts]) for parts in (2, 1, 4)],
        [CubeBank(torch.randn(count, 6), torch.rand(count, 6)) for count in (2, 1, 3)],
    ],
    ids=["spans", "cubes"],
)
def test_one_act_for_many_says_what_each_says(banks: list[torch.nn.Module]) -> None:
    """And what is written to one of them is written to it, as an exchange does."""
    x_TF = torch.randn(9, 6)
    apart = [bank(x_TF) for bank in banks]
    ((fused, of),) = fuse(banks)
    assert of == [0, 1, 2]
    torch.testing.assert_close(fused(x_TF), torch.cat(apart, dim=1))
    for buffer in banks[1].buffers():
        if buffer.is_floating_point():
            buffer.mul_(2)
    changed = torch.cat([apart[0], banks[1](x_TF), apart[2]], dim=1)
    torch.testing.assert_close(fused(x_TF), changed)
    assert not torch.equal(banks[1](x_TF), apart[1]), "positive control"


def test_unlike_acts_stay_apart_and_in_order() -> None:
    plain = [torch.nn.Identity(), torch.nn.Identity()]
    span, cube = SpanBank(torch.randn(1, 6), torch.randn(1), [1]), CubeBank(torch.randn(1, 6), torch.rand(1, 6))
    assert [of for _, of in fuse([plain[0], span, cube, plain[1]])] == [[0], [1], [2], [3]]
