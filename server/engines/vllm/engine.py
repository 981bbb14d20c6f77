"""vLLM with guards inside: its AsyncLLM, our worker and scheduler.

The guards act in the worker processes (`guards/inside/vllm/worker.py`). Here requests go in, and the guards' readings
come back beside the tokens (`guards/inside/vllm/events.py`). A token whose row no guard judged never reaches a caller:
the worker refuses to draw it, and the scheduler to deliver it. Behind those two, the engine refuses an answer whose
readings contradict the worker, and an answer's stream refuses tokens as long as no row of the answer was judged.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vllm
from prometheus_client import Metric
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from guards.artifact.identity import refuse_mismatch
from guards.artifact.manifest import ModelIdentity
from guards.contract.columns import Columns
from guards.core.verdict import Verdict
from guards.errors import AttachError, UnsupportedModelError
from guards.inside.vllm.events import STOP_REASON, PromptReport, load_acted, load_prompt, load_report
from guards.methods.loaded import LoadedGuard
from guards.model.folder import check_files, open_codec, resolve_folder
from guards.model.weights import WeightFiles
from server.engines.answer_state import AnswerState
from server.engines.base import EngineInfo, Load
from server.engines.defaults import read_defaults
from server.engines.errors import EngineError, EngineStoppedError
from server.engines.events import FinishReason, PromptToken, RankedToken, TokenLogprob
from server.engines.guarded import GuardedEngine, Offer
from server.engines.options import VllmOptions
from server.engines.request import HONOURED, EngineRequest, Sampling, SamplingDefaults, ToolPlan
from server.engines.stream import AnswerStream, Drawn
from server.engines.tools import ToolUse
from server.engines.vllm.config import guard_settings, parse_flags
from server.engines.vllm.launch import launch, live_identity, make_config, while_alive
from server.engines.vllm.sampling import Grammars, cache_salt, refused, sampling_params, take_prepared
from server.engines.vllm.tools import VllmTools

_WORKER = "guards.inside.vllm.worker.GuardedWorker"
_SCHEDULER = "guards.inside.vllm.scheduler.GuardedScheduler"
_ASYNC_SCHEDULER = "guards.inside.vllm.scheduler.GuardedAsyncScheduler"


_RESETS, _BETWEEN_RESETS_SECONDS = 100, 0.05
"""How often vLLM is asked to forget its cached prefixes, which it does once no request holds any of them."""


class VllmEngine(GuardedEngine):
    """See `server.engines.base.Engine`."""

    def __init__(self, options: VllmOptions, *, verifiable: bool = True) -> None:
        """`verifiable` as `read_guards` has it; calibration reads a guard that has no canaries yet."""
        super().__init__(options, verifiable=verifiable)
        self._options = options
        self._arguments = parse_flags(options)
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._stopped = False
        self._llm: AsyncLLM | None = None

    async def start(self) -> None:
        folder = resolve_folder(self._options.model)
        config = await asyncio.to_thread(self._configure, folder)
        self._tools = await asyncio.to_thread(VllmTools, self._options.tool_call_parser, self._codec.tokenizer)
        with WeightFiles(folder, self._digests) as files:
            llm = await asyncio.to_thread(launch, config, self._disable_log_stats)
            try:
                await self._take_over(llm, await live_identity(llm, config, folder, files), config)
            except BaseException:
                await asyncio.to_thread(llm.shutdown)
                raise
        self._llm = llm

    def _configure(self, folder: Path) -> Any:
        """vLLM's configuration, with guards in it. Raises EngineFlagError, UnsupportedModelError or ArtifactError."""
        arguments = self._arguments
        self._disable_log_stats = bool(arguments.disable_log_stats)
        check_files(folder)
        config = make_config(arguments, folder, _WORKER)
        text_config = config.model_config.hf_text_config
        self._codec = open_codec(folder, text_config, self._options.chat_template_kwargs)
        self._stop_ids = stop_ids(config.model_config, self._codec.tokenizer)
        pairs = [
            (str(self._sources[name].folder.resolve()), entry.artifact.digest) for name, entry in self._guards.items()
        ]
        config.additional_config = guard_settings(pairs, self._codec.openings, min(self._stop_ids), self._options)
        asynchronous = config.scheduler_config.async_scheduling
        config.scheduler_config.scheduler_cls = _ASYNC_SCHEDULER if asynchronous else _SCHEDULER
        self._vocabulary = int(text_config.vocab_size)
        self._max_tokens = int(config.model_config.max_model_len)
        self._max_running = int(config.scheduler_config.max_num_seqs)
        self._capacity = self._max_running + self._options.max_waiting
        self._defaults = _defaults(config.model_config)
        model, structured, tokenizer = config.model_config, config.structured_outputs_config, self._codec.tokenizer
        self._grammars = Grammars(lambda parameters: parameters.verify(model, None, structured, tokenizer))
        return config

    async def _take_over(self, llm: AsyncLLM, identity: ModelIdentity, config: Any) -> None:
        """Compares what runs with the artifacts. Raises ArtifactMismatchError."""
        self._identity = identity
        for entry in self._guards.values():
            refuse_mismatch(entry.artifact, identity)
        self._bind(self._guards)
        self._tasks = await while_alive(llm, llm.get_supported_tasks())
        self._hear(llm)
        self._info = EngineInfo(
            engine="vllm",
            engine_version=str(vllm.__version__),
            model=self._options.name,
            architecture=identity.architecture,
            device=str(config.device_config.device_type),
            dtype=identity.dtype,
            max_model_tokens=self._max_tokens,
            longest_token=self._codec.longest_token,
            template_sha256=self._codec.chat.sha256,
            template_names=self._codec.chat.names,
            guards=await asyncio.to_thread(self._describe_guards),
            options=HONOURED["vllm"],
            defaults=self._defaults,
            tool_choices=self._tools.choices if self._codec.chat.shows_tools else frozenset(),
        )

    def _bind(self, guards: Mapping[str, LoadedGuard]) -> None:
        """Judges by what these say from now on."""
        bound = {name: entry.bound for name, entry in guards.items()}
        self._columns = Columns(bound)
        self._take_guards(guards, bound)

    async def _admit_offer(self, offered: Offer) -> None:
        """Every worker reads the artifact, and has to find in it what its graph was traced with, but for numbers."""
        name, digest, folder = offered.info.name, offered.entry.artifact.digest, offered.source.folder
        for reason in await self._workers("offer_guard", name, str(folder.resolve()), digest):
            if reason is not None:
                raise AttachError(f"{folder}: {reason}; restart needed, with this artifact among `artifacts`")

    async def _install(self, guards: Mapping[str, LoadedGuard]) -> None:
        """Into the buffers that the compiled graph reads, on every worker. What was kept of texts is forgotten."""
        llm = self._running_llm()
        for _ in range(_RESETS):
            try:
                if await while_alive(llm, llm.reset_prefix_cache()):
                    break
            except EngineDeadError as error:
                raise EngineStoppedError("the engine has stopped") from error
            await asyncio.sleep(_BETWEEN_RESETS_SECONDS)  # a request that was given up is still on its way out
        else:
            raise EngineError("vLLM still holds a request's cache, so guards are not exchanged: try again")
        await self._workers("exchange_guard")
        self._bind(guards)

    async def _workers(self, method: str, *arguments: str) -> list[Any]:
        """What every worker answers. Raises EngineError where one cannot."""
        llm = self._running_llm()
        try:
            return list(await while_alive(llm, llm.collective_rpc(method, args=arguments)))
        except Exception as error:
            raise EngineError(f"vLLM's workers could not {method}: {error!r}") from error

    def _running_llm(self) -> AsyncLLM:
        if self._llm is None or not self.healthy():
            raise EngineStoppedError("the engine has stopped")
        return self._llm

    def _hear(self, llm: AsyncLLM) -> None:
        """Listens for events before vLLM merges outputs that a slow reader has not fetched, which would lose them."""
        processor = llm.output_processor
        process = processor.process_outputs

        def process_outputs(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            for output in outputs:
                if output.kv_transfer_params is None:
                    continue
                state = processor.request_states.get(output.request_id)
                stream = None if state is None else self._streams.get(state.external_req_id)
                if stream is not None:
                    self._take(stream.answer, output.kv_transfer_params)
            return process(outputs, *args, **kwargs)

        processor.process_outputs = process_outputs

    def _take(self, answer: AnswerState, params: Any) -> None:
        """An error here is one answer's: raised, it would end the loop that hears for all of them."""
        try:
            if (acted := load_acted(params)) is not None:
                answer.take_acted(acted.generated, self._columns.health, acted.amounts)
            if (prompt := load_prompt(params)) is not None:
                self._take_prompt(answer, prompt)
            if (report := load_report(params)) is None:
                return
            answer.generated = report.generated
            taus = self._columns.taus([answer.request.policy])
            answer.judge(self._facts, self._columns.readings(torch.tensor([report.entries]), taus)[0])
            if report.withheld != (answer.outcome is not Verdict.ALLOW):
                withheld = "withheld" if report.withheld else "drew"
                answer.fail_unverified(f"the worker {withheld} a token, and its readings say {answer.outcome.name}")
        except Exception as error:
            answer.fail_unverified(f"a reading could not be judged: {error!r}")

    def _take_prompt(self, answer: AnswerState, prompt: PromptReport) -> None:
        """Silence about a place that the worker judged says that every guard read OUTSIDE there."""
        wanted = len(answer.request.prompt_token_ids) - 1
        if prompt.judged != wanted:
            answer.fail_unverified(f"the worker judged {prompt.judged} places inside the prompt, of {wanted}")
        if prompt.rows:
            places, rows = zip(*prompt.rows, strict=True)
            taus = self._columns.taus([answer.request.policy]).expand(len(rows), -1)
            for place, readings in zip(places, self._columns.readings(torch.tensor(rows), taus), strict=True):
                answer.judge_prompt(self._facts, place, readings)

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for stream in self._streams.values():
            stream.outputs.put_nowait(None)
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)

    def healthy(self) -> bool:
        return not self._stopped and self._llm is not None and not self._llm.errored

    def plan_tools(self, use: ToolUse) -> ToolPlan:
        return self._tools.plan(use)

    def load(self) -> Load:
        running = min(len(self._streams), self._max_running)
        return Load(running=running, waiting=len(self._streams) - running)

    def metrics(self) -> Iterable[Metric]:
        """vLLM's own as well, from where it keeps them: the process's registry, or files of several processes."""
        yield from super().metrics()
        yield from (metric for metric in get_prometheus_registry().collect() if metric.name.startswith("vllm:"))

    def how(self) -> Mapping[str, str]:
        config = self._running_llm().vllm_config
        compilation, v2 = config.compilation_config, config.use_v2_model_runner
        mode = getattr(compilation.mode, "name", compilation.mode)
        untested = config.device_config.device_type != "cpu"
        runner = f"model runner V{2 if v2 else 1}"
        tested = (
            "guards were not tested with it: --allow-untested-runner takes it all the same" if untested else "tested"
        )
        return {
            "graphs": f"compilation {mode}, CUDA graphs {compilation.cudagraph_mode.name}",
            "runner": f"{runner} on {config.device_config.device_type}, {tested}",
            "ranks": f"{config.parallel_config.world_size}",
        }

    def submit(self, request: EngineRequest) -> AnswerStream:
        llm = self._llm
        request = self._admit(request)
        assert llm is not None
        salt = cache_salt(request.tenant, self._columns.switched_off(request.policy))
        try:
            prepared = llm.input_processor.process_inputs(
                request.request_id,
                tokens_input(list(request.prompt_token_ids), cache_salt=salt),
                sampling_params(request.sampling, request.policy, proof=request.proof),
                self._tasks,
            )
        except (ValueError, VLLMClientError) as error:
            raise refused(error, "sampling") from error
        words = self._bad_word_ids(request.sampling)
        take_prepared(prepared.sampling_params, request.sampling, words, self._grammars)
        close = partial(self._close, request.request_id)
        stream = AnswerStream(AnswerState(request), self._codec.tokenizer, self._stop_ids, close, self._others)
        self._streams[request.request_id] = stream
        self._pumps[request.request_id] = asyncio.create_task(self._pump(llm, prepared, stream))
        return stream

    def _require_grammar(self, sampling: Sampling) -> None:
        assert sampling.grammar is not None
        self._grammars.checked(sampling.grammar)

    async def _pump(self, llm: AsyncLLM, prepared: Any, stream: AnswerStream) -> None:
        """Hands on what vLLM draws. Cancelling it aborts the request in vLLM."""
        try:
            async for output in llm.generate(prepared, prepared.sampling_params, prepared.request_id):
                found = output.prompt_logprobs
                prompt = await asyncio.to_thread(self._prompt, stream.answer, found) if found else ()
                stream.outputs.put_nowait(self._drawn(stream.answer, output.outputs[0], prompt))
        except EngineDeadError:
            pass  # and that is said below
        except Exception as error:
            cause = error.__cause__ or error  # vLLM's wrapper says nothing itself
            stream.outputs.put_nowait(Drawn(ended=FinishReason.ERROR, error=f"vLLM failed: {cause!r}"))
        finally:
            stream.outputs.put_nowait(None)  # however it ended; nobody reads on behind an answer's end

    def _prompt(self, answer: AnswerState, found: Any) -> tuple[PromptToken, ...]:
        """vLLM's list of a prompt, which comes once: nothing of the first token, then by token id. NaN is withheld."""
        prompt, count = answer.request.prompt_token_ids, answer.request.sampling.prompt_logprobs
        if count is None:
            return ()
        text, tokens = self._token_texts, []
        for token, of in zip(prompt, found, strict=True):
            if of is None or token not in of or math.isnan(of[token].logprob):
                tokens.append(PromptToken())
                continue
            ranked = sorted(of.items(), key=lambda item: item[1].rank)
            told = [RankedToken(each, *text(each), float(seen.logprob), int(seen.rank)) for each, seen in ranked]
            itself = next(each for each in told if each.token_id == token)
            tokens.append(PromptToken(itself, tuple(told[:count])))
        return tuple(tokens)

    def _drawn(self, answer: AnswerState, output: Any, prompt: tuple[PromptToken, ...]) -> Drawn:
        tokens, ended, error = tuple(output.token_ids), None, None
        if output.stop_reason == STOP_REASON and answer.outcome is Verdict.ALLOW:
            answer.fail_unverified("a token was withheld, and nothing said why")
        if output.finish_reason in ("stop", "length"):
            ended = FinishReason(output.finish_reason)
        elif output.finish_reason is not None:
            ended, error = FinishReason.ERROR, f"vLLM ended the answer: {output.finish_reason}"
        count = answer.request.sampling.logprobs or 0
        logprobs = tuple(
            self._logprob(token, found, count) for token, found in zip(tokens, output.logprobs or (), strict=False)
        )
        return Drawn(tokens, logprobs, prompt, ended, error)

    def _logprob(self, token: int, found: Any, count: int) -> TokenLogprob:
        """vLLM lists the drawn token first and then the most likely ones, by rank."""
        text, raw = self._token_texts(token)
        ranked = sorted(found.items(), key=lambda item: item[1].rank)[:count]
        top = tuple((*self._token_texts(each), float(of.logprob)) for each, of in ranked)
        return TokenLogprob(text, raw, float(found[token].logprob), top)

    def _close(self, request_id: str, finished: bool) -> None:
        """Forgets a request, and cancels it in vLLM unless it ended there."""
        self._streams.pop(request_id, None)
        pump = self._pumps.pop(request_id, None)
        if pump is not None and not finished:
            pump.cancel()


def stop_ids(model_config: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text token ids. Raises UnsupportedModelError when the model names none."""
    named = [
        (model_config.try_get_generation_config() or {}).get("eos_token_id"),
        getattr(model_config.hf_config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    found = {token for each in named for token in (each if isinstance(each, list | tuple) else [each])} - {None}
    if not found:
        raise UnsupportedModelError("the model names no end-of-text token (eos_token_id); set one in its configuration")
    return frozenset(int(token) for token in found)


def _defaults(model_config: Any) -> SamplingDefaults:
    """As vLLM's own server has them; a length that the operator sets is also the longest there."""
    values = model_config.get_diff_sampling_param()
    own = model_config.generation_config in ("auto", "vllm")
    most = model_config.override_generation_config.get("max_new_tokens") if own else values.get("max_tokens")
    return read_defaults({**values, "most_tokens": most})
