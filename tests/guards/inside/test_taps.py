"""What is put on a module sees the site's vectors, no more and never a copy, and leaves nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guards.errors import AttachError, GuardReadingError
from guards.inside.taps import Purpose, install
from guards.model.sites import End, Form, Tap


class Act(nn.Module):
    """Keeps what it was shown, and adds to it in place."""

    def __init__(self, more: float = 0.0) -> None:
        super().__init__()
        self.more, self.seen = more, list[Tensor]()

    def forward(self, x_TF: Tensor) -> None:
        self.seen.append(x_TF.clone())
        x_TF += self.more


class Gives(nn.Module):
    """Gives what it was told to, whatever it takes."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any) -> Any:
        return self.output


X = torch.arange(12.0).view(1, 3, 4)
WIDE = torch.arange(24.0).view(3, 8)


def test_the_input_is_seen_and_changed_where_it_lies() -> None:
    module, act, x = nn.Identity(), Act(1.0), X.clone()
    install(Tap(module, End.INPUT, Form.WHOLE), Purpose.CHANGE, act, torch.float32)
    assert torch.equal(module(x), X + 1)
    assert torch.equal(act.seen[0], X[0])


@pytest.mark.parametrize("beside", [(), (None,)], ids=["alone", "with its bias"])
def test_the_output_is_seen_and_changed_where_it_lies(beside: tuple[None, ...]) -> None:
    given = X.clone()
    module, act = Gives((given, *beside) if beside else given), Act(1.0)
    install(Tap(module, End.OUTPUT, Form.WHOLE), Purpose.CHANGE, act, torch.float32)
    module()
    assert torch.equal(given, X + 1)
    assert torch.equal(act.seen[0], X[0])


def test_the_first_half_is_seen_and_the_rest_untouched() -> None:
    given = WIDE.clone()
    module, act = Gives((given, None)), Act(100.0)
    install(Tap(module, End.OUTPUT, Form.FIRST_HALF), Purpose.CHANGE, act, torch.float32)
    module()
    assert torch.equal(act.seen[0], WIDE[:, :4])
    assert torch.equal(given[:, :4], WIDE[:, :4] + 100)
    assert torch.equal(given[:, 4:], WIDE[:, 4:])


@pytest.mark.parametrize("purpose", [Purpose.SCORE, Purpose.COPY])
def test_a_sum_is_seen(purpose: Purpose) -> None:
    module, act = Gives((WIDE, 2 * WIDE)), Act()
    install(Tap(module, End.OUTPUT, Form.SUM), purpose, act, torch.float32)
    module()
    assert torch.equal(act.seen[0], 3 * WIDE)


class SumAct(Act):
    """Changes the second token alone."""

    def forward(self, x_TF: Tensor) -> None:
        self.seen.append(x_TF.clone())
        x_TF[1] += self.more


def test_a_changed_sum_is_handed_on_and_the_two_as_they_were_elsewhere() -> None:
    """In bfloat16, in which a sum that is rounded is another one."""
    hidden, residual = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    module, act, read = Gives((hidden, residual)), SumAct(1.0), Act()
    tap = Tap(module, End.OUTPUT, Form.SUM)
    install(tap, Purpose.CHANGE, act, torch.bfloat16)
    install(tap, Purpose.SCORE, read, torch.bfloat16)
    given = module()
    assert torch.equal(act.seen[0], hidden + residual)
    changed_T1 = torch.tensor([[False], [True], [False]])
    assert torch.equal(given[0], torch.where(changed_T1, hidden + residual + 1, hidden))
    assert torch.equal(given[1], torch.where(changed_T1, 0, residual))
    assert torch.equal(read.seen[0], given[0] + given[1]), "whoever reads sees what the change left"


@pytest.mark.parametrize("given", [WIDE, (WIDE,), (WIDE, WIDE, WIDE)], ids=["one", "one in a tuple", "three"])
def test_a_sum_of_another_number_of_tensors_is_an_error(given: Any) -> None:
    module = Gives(given)
    install(Tap(module, End.OUTPUT, Form.SUM), Purpose.SCORE, Act(), torch.float32)
    with pytest.raises(GuardReadingError, match=r"wanted \(hidden, residual\)"):
        module()


@pytest.mark.parametrize("hidden", [object(), WIDE.half(), WIDE.to(torch.int8), (object(), None)])
@pytest.mark.parametrize("form", [Form.WHOLE, Form.FIRST_HALF])
def test_what_is_hidden_is_an_error(hidden: Any, form: Form) -> None:
    module = Gives(hidden)
    install(Tap(module, End.OUTPUT, form), Purpose.SCORE, Act(), torch.float32)
    with pytest.raises(GuardReadingError, match="fused"):
        module()


def test_a_tensor_that_only_a_copy_would_flatten_is_an_error() -> None:
    """Else a change would be lost."""
    module = nn.Identity()
    install(Tap(module, End.INPUT, Form.WHOLE), Purpose.CHANGE, Act(1.0), torch.float32)
    with pytest.raises(RuntimeError, match="view"):
        module(torch.zeros(4, 3, 2).transpose(0, 1))


@pytest.mark.parametrize("end", [End.INPUT, End.OUTPUT])
def test_each_purpose_has_room_once_until_it_is_taken_off(end: End) -> None:
    module = nn.Identity()
    tap, acts = Tap(module, end, Form.WHOLE), {purpose: Act() for purpose in Purpose}
    removes = [install(tap, purpose, act, torch.float32) for purpose, act in acts.items()]
    for purpose in Purpose:
        with pytest.raises(AttachError, match=f"{purpose.value}_{end.value} already"):
            install(tap, purpose, Act(), torch.float32)
    module(X.clone())
    assert [len(act.seen) for act in acts.values()] == [1, 1, 1]
    for remove in (*removes, *removes):  # twice is no harm
        remove()
    module(X.clone())
    assert [len(act.seen) for act in acts.values()] == [1, 1, 1]
    assert not list(module.children())
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    install(tap, Purpose.SCORE, Act(), torch.float32)


def test_what_was_put_there_first_acts_first() -> None:
    """Whoever reads sees what a change before it left."""
    module, seen = nn.Identity(), Act()
    tap = Tap(module, End.INPUT, Form.WHOLE)
    install(tap, Purpose.CHANGE, Act(1.0), torch.float32)
    install(tap, Purpose.SCORE, seen, torch.float32)
    module(X.clone())
    assert torch.equal(seen.seen[0], X[0] + 1)


def test_at_both_ends_a_change_sees_what_is_given_and_taken_and_nothing_else_is_there() -> None:
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    plain, seen = module(x), list[Tensor]()

    class Branch(nn.Module):
        def forward(self, y_TD: Tensor, k_TF: Tensor) -> None:
            seen.append(k_TF.clone())
            y_TD.add_(1)

    tap = Tap(module, End.BOTH, Form.WHOLE)
    for purpose in (Purpose.SCORE, Purpose.COPY):
        with pytest.raises(AttachError, match="a site of both ends is for changes"):
            install(tap, purpose, Branch(), torch.float32)
    remove = install(tap, Purpose.CHANGE, Branch(), torch.float32)
    with torch.no_grad():
        assert torch.equal(module(x), plain + 1)
    assert torch.equal(seen[0], x)
    remove()
    assert torch.equal(module(x), plain)
