"""transformers' continuous batching, set up so that guards can rely on it. The one place that touches its internals."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR, PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import CacheAllocator
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from guards.errors import UnsupportedModelError
from server.engines.embedded.sampler import JudgingSampler
from server.engines.options import EmbeddedOptions

PAGE_TOKENS = 32
_SCHEDULER = "skillguard"
_LEAST_HASHED = -(2**31)
"""transformers hashes tokens as C's int."""


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """First come, first served, but for those that `goes_first` names. `reads_prompt` names requests that may take
    nothing from the cache of prefixes.

    Under cache pressure the batcher stops admitting until some answer finishes. An answer that is cancelled instead, by
    its client or by a stop string, would leave it waiting for ever.
    """

    reads_prompt: Callable[[str], bool]
    goes_first: Callable[[str], bool]

    def add_waiting_request(self, state: Any) -> None:
        super().add_waiting_request(state)
        if self.goes_first(state.request_id):
            self.waiting_requests_order.remove(state.request_id)
            self.waiting_requests_order.appendleft(state.request_id)

    def _infer_request_tokens(self, state: Any, removed: set[str]) -> Any:
        shares = self.cache.use_prefix_sharing
        self.cache.use_prefix_sharing = shares and not self.reads_prompt(state.request_id)
        try:
            return super()._infer_request_tokens(state, removed)
        finally:
            self.cache.use_prefix_sharing = shares

    def clear_cancelled_requests(self) -> Any:
        cancelled = super().clear_cancelled_requests()
        if not self.active_requests:
            self.block_new_requests = False
        return cancelled


class _Router(OutputRouter):  # type: ignore[misc]
    """Hands the batcher's outputs to the event loop, one wake-up per step."""

    def __init__(self, dispatch: Callable[[list[Any]], None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._dispatch, self._loop = dispatch, loop

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._dispatch, outputs)


def make_manager(
    model: Any,
    options: EmbeddedOptions,
    sampler: JudgingSampler,
    stop_ids: frozenset[int],
    dispatch: Callable[[list[Any]], None],
    over: Callable[[], None],
    loop: asyncio.AbstractEventLoop,
) -> Any:
    """A ContinuousBatchingManager that judges and draws through `sampler`, and dispatches on `loop`; not started yet.

    `over` is called on `loop` once its thread has ended, however it did.

    Raises UnsupportedModelError where guards would not see every pass or lose the slots of a sequence, or where it
    would not say which rows it samples.
    """
    if not model._supports_logits_to_keep():
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no logits_to_keep: guards cannot tell which rows count"
        )
    layer_types = {*(getattr(model.config.get_text_config(), "layer_types", None) or ())}
    if strange := sorted(layer_types - {*ATTN_TYPE_TO_ALLOCATOR}):
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers of type {', '.join(strange)}, whose state transformers' continuous "
            "batching does not hold: serve it with --engine vllm"
        )
    if "_eos_token_ids" not in RequestState.__dataclass_fields__:
        raise UnsupportedModelError(
            "this transformers keeps end tokens elsewhere: a withheld answer could not be ended"
        )
    if not hasattr(FIFOScheduler, "_infer_request_tokens"):
        raise UnsupportedModelError("this transformers looks for cached prefixes elsewhere: prompts could not be read")
    if not (hasattr(PagedAttentionCache, "search_prefix_match") and hasattr(CacheAllocator, "mark_complete_blocks")):
        raise UnsupportedModelError(
            "this transformers shares cached prefixes by other means: requests with other interventions would share"
        )
    asked = {"reads_prompt": staticmethod(sampler.reads_prompt), "goes_first": staticmethod(sampler.goes_first)}
    SCHEDULER_MAPPING[_SCHEDULER] = type("_AskingScheduler", (_Scheduler,), asked)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(stop_ids)),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=-(-options.kv_cache_tokens // PAGE_TOKENS),
            max_batch_tokens=options.max_batch_tokens,
            max_requests_per_batch=options.max_running,
            scheduler_type=_SCHEDULER,
            use_cuda_graph=False,
            use_async_batching=False,
            default_compile_level=0,
            cpu_offload_space=0.0,
        ),
    )
    _refuse_unguardable(manager.continuous_batching_config)
    manager.logit_processor = sampler
    manager.output_router = _Router(dispatch, loop)
    manager._run_generation_loop = _telling(manager._run_generation_loop, over, loop)
    manager.warmup()  # makes the cache now, so that its real capacity is known before the first request
    _keep_apart(manager.batch_processor.cache, sampler.salt, int(model.config.get_text_config().vocab_size))
    return manager


def _keep_apart(cache: Any, salt: Callable[[str], int | None], vocabulary: int) -> None:
    """Has requests share cached prefixes only with those of the same salt; one without a salt shares none.

    Blocks are known by a hash of their tokens and of those before them. A salted prompt is hashed with another first
    token, which no model has. Those of salts for which there is no such token left share none.
    """
    most = -_LEAST_HASHED // vocabulary - 1

    def salted(tokens: list[int], own: int) -> list[int]:
        return tokens if own == 0 else [-(own * vocabulary + tokens[0]), *tokens[1:]]

    search = cache.search_prefix_match

    def search_own(request_id: str, prompt_ids: list[int]) -> int:
        own = salt(request_id)
        return 0 if own is None or own > most else int(search(request_id, salted(prompt_ids, own)))

    def marking(mark: Callable[[str, list[int], int], None]) -> Callable[[str, list[int], int], None]:
        def mark_own(request_id: str, token_ids: list[int], blocks: int) -> None:
            own = salt(request_id)
            if own is not None and own <= most:
                mark(request_id, salted(token_ids, own), blocks)

        return mark_own

    cache.search_prefix_match = search_own
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = marking(allocator.mark_complete_blocks)


def _telling(run: Callable[[], None], over: Callable[[], None], loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """The batcher's thread fails what is left for errors that it catches, and an end of the thread is not one."""

    @wraps(run)
    def run_and_tell() -> None:
        try:
            run()
        finally:
            with suppress(RuntimeError):  # the event loop is closed: nobody is left to hear it
                loop.call_soon_threadsafe(over)

    return run_and_tell


def longest_request(manager: Any) -> int:
    """Tokens of the longest request that the cache can hold by itself, with a page to spare.

    A longer one could be neither scheduled nor set aside, which would end the batcher for everybody. Raises
    UnsupportedModelError when the cache holds no request at all.
    """
    longest = int(infer_max_single_request_tokens(manager.batch_processor.cache)) - PAGE_TOKENS
    if longest < PAGE_TOKENS:
        raise UnsupportedModelError("the cache is too small for this model: raise --kv-cache-tokens")
    return longest


def _refuse_unguardable(config: Any) -> None:
    recorded = config.use_async_batching or any(config.cuda_graph_booleans)
    compiled = config.varlen_compile_config is not None or config.decode_compile_config is not None
    if recorded or compiled:
        raise UnsupportedModelError(
            "transformers turned on CUDA graphs, compilation or asynchronous batching; guards would not run there"
        )
    if config.cpu_offload_space != 0:
        raise UnsupportedModelError(
            f"transformers moves up to {config.cpu_offload_space} GiB of its cache to the CPU's memory; an answer "
            "would come back at other slots than those where guards over spans keep its states"
        )
