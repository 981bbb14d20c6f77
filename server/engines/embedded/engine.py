"""The embedded engine: transformers' continuous batching with guards inside the model's feed-forward layers.

Runs anywhere torch does. CUDA graphs, compilation and asynchronous batching stay off here: Python hooks would be
recorded once and skipped afterwards.
"""

import asyncio
import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
import transformers
from transformers import GenerationConfig

from guards.artifact.identity import refuse_mismatch
from guards.errors import UnsupportedModelError
from guards.inside.transformers.attach import Attachment
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.inside.transformers.writing import stop_ids
from guards.methods.loaded import LoadedGuard
from server.engines.base import EngineInfo, Load
from server.engines.defaults import NEUTRAL_FILE, read_defaults
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.batching import longest_request, make_manager
from server.engines.embedded.grammars import Grammars
from server.engines.embedded.processors import Steering, steers
from server.engines.embedded.prompt_rows import PromptRows
from server.engines.embedded.sampler import JudgingSampler
from server.engines.errors import EngineStoppedError, InvalidOptionError
from server.engines.events import FinishReason, PromptToken
from server.engines.guarded import GuardedEngine, Offer
from server.engines.options import EmbeddedOptions
from server.engines.request import HONOURED, EngineRequest, Sampling, SamplingDefaults
from server.engines.stream import AnswerStream, Drawn

P = ParamSpec("P")
T = TypeVar("T")

SENTINEL = "<|abstain|>"
"""A reserved token of this name ends suppressed answers where the tokenizer has one; else the end-of-text token."""


async def _aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What it gives, of a thread that ends with it.

    Each thread in which torch has computed keeps threads of OpenMP's of its own. Where there are more of these in all
    than processors, they sleep between operations instead of waiting awake: on two cores a small model then takes twice
    as long for a token, in the batcher's thread as well.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="skillguard-aside")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args, **kwargs))
    finally:
        pool.shutdown(wait=False)


class EmbeddedEngine(GuardedEngine):
    """See `server.engines.base.Engine`."""

    def __init__(self, options: EmbeddedOptions) -> None:
        super().__init__(options)
        self._options = options
        self._capacity = options.max_running + options.max_waiting
        self._stopped = False
        self._held: LoadedModel | None = None
        self._attaching = asyncio.Lock()
        """Nothing is let go while guards are being attached."""
        self._attachment: Attachment | None = None
        self._prompts: PromptRows | None = None
        self._answers: dict[str, EmbeddedAnswerState] = {}
        self._manager: Any = None
        self._grammars: Grammars | None = None

    async def start(self) -> None:
        options, self._loop = self._options, asyncio.get_running_loop()
        self._held = await _aside(
            load_model, options.model, options.device, options.dtype, options.chat_template_kwargs, self._digests
        )
        self._codec, self._identity = self._loaded.codec, self._loaded.identity
        self._defaults = self._read_defaults()
        self._vocabulary = int(self._loaded.model.config.vocab_size)
        for entry in self._guards.values():
            refuse_mismatch(entry.artifact, self._identity)
        await _aside(self._attach, self._guards)
        self._info = await _aside(self._describe)

    @property
    def _loaded(self) -> LoadedModel:
        """Raises EngineStoppedError where it was let go."""
        if self._held is None:
            raise EngineStoppedError("the engine has stopped")
        return self._held

    def _attach(self, guards: Mapping[str, LoadedGuard]) -> None:
        """Puts these guards on the model and runs it, with nothing kept of texts from before. Raises AttachError."""
        pairs = {name: (entry.method, entry.guard) for name, entry in guards.items()}
        self._attachment = Attachment(
            self._loaded.model, self._loaded.sites, pairs, self._codec.openings, whole=self._whole
        )
        try:
            self._start_batching(guards)
        except BaseException:
            self._take_off()
            raise

    async def _admit_offer(self, offered: Offer) -> None:
        """Any artifact that fits the model: it is attached anew."""

    async def _install(self, guards: Mapping[str, LoadedGuard]) -> None:
        """The batcher ends, and with it its cache and whatever guards kept there; a new one begins with new guards."""
        async with self._attaching:
            if not self.healthy():
                raise EngineStoppedError("the engine has stopped")
            await _aside(self._reattach, guards)

    def _reattach(self, guards: Mapping[str, LoadedGuard]) -> None:
        self._end_batching()
        before = self._guards
        try:
            self._attach(guards)
        except BaseException:
            self._attach(before)
            raise

    def _end_batching(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.stop(block=True, hard_stop=True)
        self._take_off()

    def _read_defaults(self) -> SamplingDefaults:
        """Of the model's generation_config.json, or of the one that takes its place, end tokens included."""
        wanted, model = self._options.generation_config, self._loaded.model
        if wanted == NEUTRAL_FILE:
            return SamplingDefaults()
        if wanted != "auto":
            try:
                model.generation_config = GenerationConfig.from_pretrained(wanted, local_files_only=True)
            except (OSError, ValueError) as error:
                raise UnsupportedModelError(
                    f"--generation-config: got {wanted!r}, wanted auto, {NEUTRAL_FILE} or a folder with a "
                    "generation_config.json"
                ) from error
        return read_defaults(model.generation_config.to_diff_dict())

    def _start_batching(self, guards: Mapping[str, LoadedGuard]) -> None:
        options, model, tokenizer = self._options, self._loaded.model, self._loaded.codec.tokenizer
        assert self._attachment is not None
        limit = int(model.config.max_position_embeddings)
        self._stop_ids = stop_ids(model, tokenizer)
        if self._grammars is None:  # guards that are exchanged change nothing of it
            self._grammars = Grammars(self._codec, self._vocabulary, self._stop_ids)
        sentinel = tokenizer.get_vocab().get(SENTINEL)
        self._sentinel = min(self._stop_ids) if sentinel is None else int(sentinel)
        self._take_guards(guards, self._attachment.bound)
        self._prompts = PromptRows(model)
        self._sampler = JudgingSampler(
            self._facts,
            self._attachment.columns,
            self._attachment.take,
            self._token_texts,
            self._sentinel,
            self._stop_ids,
            self._prompts,
            self._attachment.switch,
        )
        manager = make_manager(model, options, self._sampler, self._stop_ids, self._dispatch, self._over, self._loop)
        self._max_tokens = min(limit, options.max_model_tokens or limit, longest_request(manager))
        manager.start()
        self._manager = manager
        if self._stopped:  # before there was one to be ended: `stop` says so first, and looks for one then
            self._end_batching()
            self._let_go()

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        async with self._attaching:
            await asyncio.to_thread(self._end_batching)
            self._over()
            await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        """Of the model and of the batcher's cache, whoever still holds this engine: another one may need the memory."""
        self._held = self._attachment = self._prompts = None
        gc.collect()  # the batcher and its cache refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._grammars is not None:
            self._grammars.close()

    def _over(self) -> None:
        """Nothing comes any more: whoever waits is told. Those whose end was dispatched before have it first."""
        for stream in self._streams.values():
            stream.outputs.put_nowait(None)

    def _take_off(self) -> None:
        if self._prompts is not None:
            self._prompts.remove()
        if self._attachment is not None:
            self._attachment.remove()

    def healthy(self) -> bool:
        return not self._stopped and self._manager is not None and bool(self._manager.is_running())

    def how(self) -> Mapping[str, str]:
        return {"graphs": "none: every pass is eager, with hooks in Python"}

    def submit(self, request: EngineRequest) -> AnswerStream:
        request = self._admit(request)
        answer = EmbeddedAnswerState(request, stops=self._stops(request), steering=self._steering(request))
        if request.sampling.seed is not None:
            answer.generator = torch.Generator(self._loaded.model.device).manual_seed(request.sampling.seed)
        close = partial(self._close, request.request_id)
        stream = AnswerStream(answer, self._codec.tokenizer, self._stop_ids, close, self._others)
        self._streams[request.request_id] = stream
        self._answers[request.request_id] = answer
        self._sampler.add(answer)
        try:
            self._queue(answer)
        except BaseException:
            self._close(request.request_id, finished=True)
            raise
        return stream

    def prepare(self, sampling: Sampling) -> None:
        super().prepare(sampling)
        if sampling.allowed_token_ids and {*sampling.allowed_token_ids} <= {self._sentinel} - self._stop_ids:
            raise InvalidOptionError(f"got only token {self._sentinel}, which no answer holds", "allowed_token_ids")

    def load(self) -> Load:
        running = min(len(self._streams), self._options.max_running)
        return Load(running=running, waiting=len(self._streams) - running)

    def _stops(self, request: EngineRequest) -> frozenset[int]:
        ends = frozenset() if request.sampling.ignore_eos else self._stop_ids
        return ends.union(request.sampling.stop_token_ids)

    def _steering(self, request: EngineRequest) -> Steering | None:
        """Raises InvalidOptionError like `prepare`, which compiled the grammar before."""
        sampling = request.sampling
        if not steers(sampling):
            return None
        stops = self._stop_ids.union(sampling.stop_token_ids)  # also where they are ignored, as in vLLM
        assert self._grammars is not None
        match = None if sampling.grammar is None else self._grammars.match(sampling.grammar, stops)
        return Steering(request, self._bad_word_ids(sampling), stops, match, self._loaded.device)

    def _require_grammar(self, sampling: Sampling) -> None:
        assert sampling.grammar is not None
        assert self._grammars is not None
        self._grammars.check(sampling.grammar)

    def _queue(self, answer: EmbeddedAnswerState) -> None:
        """Gives a request to the batcher. Raises EngineStoppedError where that will not run it."""
        request = answer.request
        accepted = self._manager.add_request(
            list(request.prompt_token_ids),
            request_id=request.request_id,
            max_new_tokens=request.sampling.max_tokens,
            streaming=True,
            eos_token_id=sorted(answer.stops),
        )
        # A batcher that dies drains its queue after it stopped accepting: still accepting means that it will see this.
        if accepted is None or self._manager.background_thread_status.can_accept_new_requests() is not None:
            raise EngineStoppedError("the engine has stopped")

    def _dispatch(self, outputs: list[Any]) -> None:
        """On the event loop: outputs of one step to their streams; those of cancelled requests are dropped."""
        for output in outputs:
            answer = self._answers.get(output.request_id)
            if answer is not None:
                self._streams[output.request_id].outputs.put_nowait(self._drawn(answer, output))

    def _drawn(self, answer: EmbeddedAnswerState, output: Any) -> Drawn:
        """What is new in an output of the batcher, which repeats all tokens of an answer each time."""
        tokens, ended = output.generated_tokens, None
        new = slice(answer.delivered, len(tokens))
        answer.delivered = len(tokens)
        if output.is_finished():
            ended = FinishReason.STOP if tokens and tokens[-1] in answer.stops else FinishReason.LENGTH
        error = None if output.error is None else f"the forward pass failed: {output.error}"
        prompt: tuple[PromptToken, ...] = ()
        if answer.request.sampling.prompt_logprobs is not None and new.start == 0 and tokens:
            prompt = (PromptToken(), *(answer.prompt[position] for position in sorted(answer.prompt)))
        return Drawn(tuple(tokens[new]), tuple(answer.logprobs[new]), prompt, ended, error)

    def _close(self, request_id: str, finished: bool) -> None:
        """Forgets a request, and cancels it in the batcher unless it ended there."""
        self._streams.pop(request_id, None)
        self._answers.pop(request_id, None)
        self._sampler.discard(request_id)
        if not finished and self._manager is not None:
            self._manager.cancel_request(request_id)

    def _describe(self) -> EngineInfo:
        loaded, options = self._loaded, self._options
        return EngineInfo(
            engine="transformers",
            engine_version=str(transformers.__version__),
            model=options.name,
            architecture=loaded.identity.architecture,
            device=str(loaded.device),
            dtype=loaded.identity.dtype,
            max_model_tokens=self._max_tokens,
            longest_token=loaded.codec.longest_token,
            template_sha256=loaded.codec.chat.sha256,
            template_names=loaded.codec.chat.names,
            guards=self._describe_guards(),
            options=HONOURED["transformers"],
            defaults=self._defaults,
        )
