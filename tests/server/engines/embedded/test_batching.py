"""What is changed in transformers' batcher, against its own behaviour."""

from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from guards.errors import UnsupportedModelError
from server.engines.embedded.batching import _refuse_unguardable, _Scheduler
from server.engines.embedded.engine import EmbeddedEngine
from tests.server.engines.embedded.tiny_engine import Served, guarded, run


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


def test_the_cache_stays_where_it_is_whatever_transformers_does_by_default(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence that comes back at other slots would be read with another sequence's states."""

    init = transformers.ContinuousBatchingConfig.__init__

    def offloading(config: Any, **settings: Any) -> None:
        init(config, **{"cpu_offload_space": 0.01, **settings})

    async def pool(engine: EmbeddedEngine) -> object:
        return engine._manager.batch_processor.offloading_manager._cpu_pool

    monkeypatch.setattr(transformers.ContinuousBatchingConfig, "__init__", offloading)
    assert transformers.ContinuousBatchingConfig().cpu_offload_space == 0.01, "the control"
    assert run(guarded(served), pool) is None


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("use_cuda_graph", True, "CUDA graphs"),
        ("use_async_batching", True, "asynchronous batching"),
        ("cpu_offload_space", 0.01, "moves up to 0.01 GiB"),
        ("cpu_offload_space", None, "moves up to None GiB"),
    ],
)
def test_what_guards_do_not_stand_is_refused(setting: str, value: Any, why: str) -> None:
    config = transformers.ContinuousBatchingConfig(use_cuda_graph=False, use_async_batching=False)
    _refuse_unguardable(config)
    setattr(config, setting, value)
    with pytest.raises(UnsupportedModelError, match=why):
        _refuse_unguardable(config)
