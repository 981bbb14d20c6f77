"""Calibration on vLLM: activations of the very model that will be served, sharded, compiled or quantised as it is.

Suffixes: R rows (tokens), F neurons of the site.

Every example is a prompt from which vLLM draws one token that nobody reads. Prefix caching is off, since a cached
prefix is not computed again and so has no activations. Examples go in groups that bound the memory of their
activations; a group waits until vLLM has all of it, so that batches do not depend on how fast requests arrive.
"""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from guards.artifact.manifest import CalibrationRecord, Manifest, ModelIdentity
from guards.artifact.pins import ArtifactPath
from guards.artifact.store import write_artifact
from guards.calibration.activations import Consumer, Pass, Reader, Span, TokenIds, wanted_span
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import Reading
from guards.errors import AttachError, CalibrationError, UnsupportedModelError
from guards.inside.transformers.loading import DTYPES
from guards.inside.vllm.capture_worker import CAPTURE
from guards.inside.vllm.settings import SETTINGS
from guards.model.folder import check_files, open_codec, resolve_folder
from guards.model.sites import SITES, Place, Site
from guards.model.weights import WeightFiles
from server.engines.options import VllmOptions
from server.engines.vllm.config import guard_settings, parse_flags
from server.engines.vllm.engine import VllmEngine, stop_ids
from server.engines.vllm.launch import launch, live_identity, live_widths, make_config, while_alive
from server.engines.vllm.slices import assemble, plan_groups

T = TypeVar("T")
_WORKER = "guards.inside.vllm.capture_worker.CapturingWorker"
_SCHEDULER = "guards.inside.vllm.scheduler.EndingScheduler"
_ASYNC_SCHEDULER = "guards.inside.vllm.scheduler.EndingAsyncScheduler"
GROUP_BYTES = 1 << 30
"""Activations of one group of examples, over all layers and ranks. Each layer of a group is fetched by itself."""
_PROVISIONAL = "provisional"


class VllmActivations:
    """See `Activations`. Starts vLLM at once; use it as a context manager, or call `close`.

    Only `sites` are seen: a traced graph cannot be told later what to copy.
    """

    device = torch.device("cpu")

    def __init__(self, options: VllmOptions, *sites: Site, group_bytes: int = GROUP_BYTES) -> None:
        self._options, self._captured, self._group_bytes = options, sites, group_bytes
        self._folder = resolve_folder(options.model)
        self._llm: AsyncLLM | None = None
        self._files: WeightFiles | None = None
        self._requests = 0
        self._runner = asyncio.Runner()
        try:
            arguments = parse_flags(options)
            arguments.enable_prefix_caching = False
            check_files(self._folder)
            self._config = make_config(arguments, self._folder, _WORKER)
            scheduling = self._config.scheduler_config
            scheduling.scheduler_cls = _ASYNC_SCHEDULER if scheduling.async_scheduling else _SCHEDULER
            text_config = self._config.model_config.hf_text_config
            self.codec = open_codec(self._folder, text_config, options.chat_template_kwargs)
            self._act([])
            self._files = WeightFiles(self._folder)
            self.identity: ModelIdentity = self._run(
                live_identity(self._started(), self._config, self._folder, self._files)
            )
            ranks = self._rpc("describe")
            self._widths = live_widths(ranks)
            self.lacking = {Place(layer, Site(site)): why for rank in ranks for layer, site, why in rank["lacking"]}
        except BaseException:
            self.close()
            raise

    @property
    def max_tokens(self) -> int:
        """One less than vLLM's own limit, which the token that it draws counts towards."""
        return int(self._config.model_config.max_model_len) - 1

    def __enter__(self) -> "VllmActivations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends vLLM's processes. Safe to call twice."""
        self._stop()
        self._runner.close()
        if self._files is not None:
            self._files.close()

    def _started(self) -> AsyncLLM:
        """vLLM, started again where a reading needed its place."""
        if self._llm is None:

            async def start() -> AsyncLLM:
                return launch(self._config)

            self._llm = self._runner.run(start())
            if self._files is not None:
                self._files.require_unchanged()
        return self._llm

    def _stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:

            async def stop() -> None:
                llm.shutdown()

            self._runner.run(stop())

    def _act(self, artifacts: Sequence[tuple[str, str]]) -> None:
        """Lets the next vLLM run with these guards, (folder, digest) each. A token that one withholds is drawn as 0: an
        intervention does so where its reading is not finite.
        """
        self._config.additional_config = guard_settings(
            artifacts, self.codec.openings, sentinel=0, options=self._options
        )
        self._config.additional_config[SETTINGS]["capture"] = [site.value for site in self._captured]

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        """What every worker returns."""
        llm = self._started()
        return self._run(while_alive(llm, llm.collective_rpc(method, args=args)))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises AttachError where vLLM's processes end before it."""
        try:
            return self._runner.run(work)
        except EngineDeadError as error:
            raise AttachError("vLLM died while it ran the examples; its own messages above say why") from error

    def width(self, site: Site) -> int:
        """See `guards.calibration.activations.Activations.width`."""
        width = SITES[site].width
        if width not in self._widths:
            raise UnsupportedModelError(f"no layer of this model has a {site} site")
        return self._widths[width]

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `guards.calibration.activations.Activations.stream`.

        Raises AttachError when a wanted row did not come back, CalibrationError for a site that is not captured or for
        `batch_tokens`, which is vLLM's own --max-num-batched-tokens here.
        """
        site, layers = wanted.site, sorted(set(wanted.layers))
        if site not in self._captured:
            raise CalibrationError(
                f"got site {site.value}, wanted one that this vLLM was started for: {', '.join(self._captured)}"
            )
        if wanted.batch_tokens is not None:
            raise CalibrationError("batch_tokens: vLLM has its own flag for that, --max-num-batched-tokens")
        llm = self._started()
        spans = [wanted_span(len(ids), wanted.tokens, wanted.skip) for ids in examples]
        dtype = DTYPES[self.identity.dtype]
        row_bytes = len(layers) * self.width(site) * dtype.itemsize
        for group in plan_groups([len(span.positions) for span in spans], self._group_bytes // row_bytes):
            rows = [(index, position) for index in group for position in spans[index].positions]
            if rows:
                self._rpc("capture", site.value, layers)
                self._run(self._pass(llm, [(index, examples[index], spans[index]) for index in group]))
            rows_R2 = torch.tensor(rows, dtype=torch.int64)
            for layer in layers if rows else ():
                slices = self._rpc("take_captured", site.value, layer)
                consume(layer, assemble(slices, rows_R2, self.width(site), dtype, layer), rows_R2[:, 0])
            advance(sum(len(examples[index]) for index in group))

    async def _pass(self, llm: AsyncLLM, group: Sequence[tuple[int, TokenIds, Span]]) -> None:
        """Runs one group's prompts."""
        await while_alive(llm, llm.pause_generation(mode="keep", clear_cache=False))
        answers = []
        for index, ids, span in group:
            self._requests += 1
            params = SamplingParams(
                max_tokens=1,
                temperature=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={CAPTURE: [index, *span]},
            )
            answers.append(await llm.add_request(f"capture-{self._requests}", tokens_input(list(ids)), params))
        await while_alive(llm, llm.resume_generation())
        for answer in answers:
            while not (await answer.get()).finished:
                pass

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        """See `guards.calibration.activations.Activations.write`."""
        llm = self._started()
        self._rpc("capture", self._captured[0].value, [])  # nothing
        ends = stop_ids(self._config.model_config, self.codec.tokenizer)
        params = SamplingParams(
            max_tokens=tokens, temperature=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )

        async def answer(ids: TokenIds, name: str) -> TokenIds:
            written: TokenIds = ()
            async for output in llm.generate(tokens_input(list(ids)), params, name):
                written = tuple(output.outputs[0].token_ids)
            advance(len(ids) + tokens)
            return written[:-1] if written and written[-1] in ends else written

        async def answers() -> list[TokenIds]:
            named = [answer(ids, f"answer-{self._requests + index}") for index, ids in enumerate(prompts)]
            return list(await asyncio.gather(*named))

        self._requests += len(prompts)
        return self._run(answers())

    @contextmanager
    def guarded(self, method: Method, guard: Guard) -> Iterator[None]:
        """Starts vLLM again with the guard in its graph; a further start, once it is needed, is without."""
        self._stop()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / _PROVISIONAL
            self._act([(str(folder), self._write_provisional(folder, method, guard))])
            try:
                yield
            finally:
                self._stop()
                self._act([])

    @contextmanager
    def reading(self, method: Method, guard: Guard) -> Iterator[Reader]:
        """Reads through the engine that serves, started once on the guard as it stands.

        A score from captured activations would not do: a compiled graph with a guard in it is another graph than the
        one that copies, and rounds elsewhere, and an intervention changes what later layers see. Two engines at a time
        might not fit, so the capturing one ends first.
        """
        self._stop()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / _PROVISIONAL
            self._write_provisional(folder, method, guard)
            options = self._options.model_copy(update={"artifacts": (ArtifactPath(folder),)})
            engine = VllmEngine(options, verifiable=False)
            self._run(engine.start())
            try:
                yield lambda ids: self._read(engine, ids)
            finally:
                self._runner.run(engine.stop())

    def _write_provisional(self, folder: Path, method: Method, guard: Guard) -> str:
        """An artifact without canaries, which nothing verifies, and its digest."""
        parameters, tensors = method.dump(guard)
        manifest = Manifest(
            method=method.name,
            skill=_PROVISIONAL,
            scope=guard.scope,
            model=self.identity,
            parameters=parameters,
            calibration=CalibrationRecord(
                tool=_PROVISIONAL, frames=(), template_sha256=None, sources=(), recall=None, false_abstention=None
            ),
            canaries=(),
            tensors_sha256="0" * 64,
        )
        return write_artifact(folder, manifest, tensors)

    def _read(self, engine: VllmEngine, ids: TokenIds) -> tuple[Reading, tuple[float, ...]]:
        self._requests += 1
        return self._runner.run(engine.read(ids, f"canary-{self._requests}"))[_PROVISIONAL]
