"""What the scheduler does with a withheld token. Its base is imitated; the real one runs in the other tests here."""

from types import SimpleNamespace
from typing import Any

import pytest

from guards.errors import GuardReadingError
from guards.inside.vllm.events import EVENTS, PROOF, STOP_REASON, Acted, RowReport, StepReport, load_acted, load_report


class Base:
    """As vLLM's scheduler: asks `_update_request_with_output` per request, and makes an output of the answer."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = []
        for index, name in enumerate(model_runner_output.req_ids):
            request = scheduler_output[name]
            tokens, stopped = self._update_request_with_output(request, model_runner_output.sampled_token_ids[index])
            outputs.append(
                SimpleNamespace(request_id=name, new_token_ids=tokens, stopped=stopped, kv_transfer_params=None)
            )
        return {0: SimpleNamespace(outputs=outputs)}

    def _update_request_with_output(self, request: Any, tokens: list[int], is_stale: bool = False) -> Any:
        return tokens, False

    def _enqueue_waiting_request(self, request: Any) -> None:
        self.waiting.add_request(request)  # type: ignore[attr-defined]


ACTED = Acted(3, (5.0,))


def updated(rows: dict[str, RowReport] | None, judged: str = "ab") -> Any:
    from guards.inside.vllm.scheduler import _Withholding

    class Scheduler(_Withholding, Base):
        pass

    requests = {name: SimpleNamespace(request_id=name, status=None, stop_reason=None) for name in ("a", "b")}
    output = SimpleNamespace(req_ids=["a", "b"], sampled_token_ids=[[2], [40]])
    if rows is not None:
        setattr(output, EVENTS, StepReport(frozenset(judged), rows, {"b": ACTED}))
    return requests, Scheduler().update_from_output(requests, output)[0].outputs


def test_canaries_go_first() -> None:
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue
    from vllm.v1.core.sched.scheduler import Scheduler as Whole

    from guards.inside.vllm.scheduler import _Withholding

    class Scheduler(_Withholding, Base):
        def __init__(self) -> None:
            self.waiting = FCFSRequestQueue()

    assert hasattr(Whole, "_enqueue_waiting_request"), "or what is imitated here is not called"
    scheduler = Scheduler()
    for name, more in (("a", None), ("b", {}), ("canary", {PROOF: True}), ("c", {})):
        scheduler._enqueue_waiting_request(
            SimpleNamespace(request_id=name, sampling_params=SimpleNamespace(extra_args=more))
        )
    assert [each.request_id for each in scheduler.waiting] == ["canary", "a", "b", "c"]


def test_a_withheld_token_is_dropped_and_ends_the_answer() -> None:
    row = RowReport(0, (1.0,), True)
    requests, (first, second) = updated({"a": row})
    assert (first.new_token_ids, first.stopped) == ([], True)
    assert requests["a"].stop_reason == STOP_REASON
    assert load_report(first.kv_transfer_params) == row
    assert (second.new_token_ids, second.stopped) == ([40], False)
    assert load_acted(second.kv_transfer_params) == ACTED


def test_a_row_without_withholding_travels_beside_its_token() -> None:
    row = RowReport(0, (9.0,), False)
    _, (first, _) = updated({"a": row})
    assert (first.new_token_ids, first.stopped) == ([2], False)
    assert load_report(first.kv_transfer_params) == row


@pytest.mark.parametrize(("rows", "judged"), [(None, ""), ({}, ""), ({}, "a"), ({}, "b")])
def test_a_token_that_nobody_judged_is_an_error(rows: dict[str, RowReport] | None, judged: str) -> None:
    with pytest.raises(GuardReadingError, match="no guard judged"):
        updated(rows, judged)
