"""vLLM's schedulers, with answers that end where the worker withheld a token, in processes that end with the server's.

The worker has replaced the token before this sees it. Here the replacement is dropped, so that no grammar, stop rule or
minimum length ever judges it, the answer ends at once, and what the guards said goes with the output to the front.
"""

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from guards.errors import GuardReadingError
from guards.inside.vllm.events import EVENTS, PROOF, STOP_REASON, StepReport

_SECONDS_TO_END = 10
"""What vLLM gets to end by itself; its workers notice when this process is gone."""


def _end_with_parent() -> None:
    """Ends this process and its workers once the server is gone: they would hold the model's memory for ever."""
    parent, main = multiprocessing.parent_process(), threading.main_thread().ident or 0
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        # To the main thread, which waits for work and would not wake up for a signal to another.
        signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(_SECONDS_TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="skillguard-parent", daemon=True).start()


class _Ending:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _end_with_parent()


class EndingScheduler(_Ending, Scheduler):  # type: ignore[misc]
    """For calibration: vLLM's own, in a process that ends with the one that started it."""


class EndingAsyncScheduler(_Ending, AsyncScheduler):  # type: ignore[misc]
    """The same with asynchronous scheduling."""


class _Withholding(_Ending):
    _report = StepReport(frozenset(), {}, {})

    def _enqueue_waiting_request(self, request: Any) -> None:
        super()._enqueue_waiting_request(request)  # type: ignore[misc]
        if PROOF in (request.sampling_params.extra_args or {}):
            self.waiting.remove_request(request)  # type: ignore[attr-defined]
            self.waiting.prepend_request(request)  # type: ignore[attr-defined]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        self._report = getattr(model_runner_output, EVENTS, _Withholding._report)
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        for of_client in outputs.values():
            for output in of_client.outputs:
                output.kv_transfer_params = self._report.params(output.request_id)
        return outputs

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        if request.request_id not in self._report.judged:
            raise GuardReadingError("the model runner drew a token that no guard judged")
        row = self._report.rows.get(request.request_id)
        if row is not None and row.withheld:
            request.status = RequestStatus.FINISHED_STOPPED
            request.stop_reason = STOP_REASON
            return [], True
        return super()._update_request_with_output(request, new_token_ids, is_stale)  # type: ignore[misc,no-any-return]


class GuardedScheduler(_Withholding, Scheduler):  # type: ignore[misc]
    """For engines without asynchronous scheduling."""


class GuardedAsyncScheduler(_Withholding, AsyncScheduler):  # type: ignore[misc]
    """For engines with asynchronous scheduling."""
