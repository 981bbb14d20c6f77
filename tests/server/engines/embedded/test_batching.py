"""What is changed in transformers' batcher, against its own behaviour."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from server.engines.embedded.batching import _Scheduler


def blocked_after_cancelling(kind: type[Any], others: int) -> bool:
    """Under cache pressure the batcher has stopped admitting; then one of the running answers is cancelled."""
    scheduler = kind(cache=SimpleNamespace(free_blocks=lambda _: None), safety_margin=0.2, max_requests_per_batch=4)
    for index in range(1 + others):
        scheduler.active_requests[f"r{index}"] = RequestState(request_id=f"r{index}", initial_tokens=[1])
    scheduler.block_new_requests = True
    scheduler.set_request_cancellation("r0")
    assert [state.request_id for state in scheduler.clear_cancelled_requests()] == ["r0"]
    return bool(scheduler.block_new_requests)


def test_cancelling_the_last_answer_lets_others_in_again() -> None:
    assert blocked_after_cancelling(FIFOScheduler, others=0), "the control: nobody would ever be admitted again"
    assert not blocked_after_cancelling(_Scheduler, others=0)


@pytest.mark.parametrize("others", [1, 2])
def test_while_others_run_they_decide(others: int) -> None:
    assert blocked_after_cancelling(_Scheduler, others)
