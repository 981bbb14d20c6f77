"""POST /v1/chat/completions, POST /v1/responses and POST /v1/completions."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from server.auth import Caller
from server.context import CallerDep, ContextDep, RequestContext, Services, ServicesDep
from server.engines.base import Engine
from server.engines.errors import InvalidOptionError
from server.engines.events import Event, Finish
from server.engines.request import EngineRequest, ToolPlan
from server.engines.tools import PlainText
from server.errors import InvalidRequestError, ModelNotFoundError
from server.generation import Answer, Observer, collect, while_connected
from server.limits import spending
from server.openai import ChatRequest, CompletionRequest
from server.openai.abstention import abstention_for
from server.openai.answers import AnswerJob
from server.openai.common import SamplingBody
from server.openai.history import log_dropped
from server.openai.moderation import BothSides
from server.openai.prompts import Echo
from server.openai.responses.request import ResponsesRequest
from server.openai.responses.wire import ResponseShape, ResponsesWire
from server.openai.shapes import AnswerShape, ChatShape, CompletionShape
from server.openai.streaming import StreamedResponse
from server.openai.wire import CompletionWire, Wire
from server.readiness import Running
from server.routes.posted import PostedRoute

router = APIRouter(route_class=PostedRoute)

TokenIds = tuple[int, ...]
MAX_TOLD = 1 << 18
"""Log-probabilities of prompts in one request."""


@router.post("/v1/chat/completions")
async def chat_completions(
    body: ChatRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> Response:
    """Continues a conversation."""
    conversing = _converse(body, ChatShape(), services, context, caller)
    job = await while_connected(request.receive, conversing)
    return await _respond(job, CompletionWire(job), bool(body.stream), request, services, context)


@router.post("/v1/responses")
async def responses(
    body: ResponsesRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> Response:
    """Continues a conversation, in the words of OpenAI's Responses API."""
    conversing = _converse(body, ResponseShape(), services, context, caller)
    job = await while_connected(request.receive, conversing)
    return await _respond(job, ResponsesWire(job, body), bool(body.stream), request, services, context)


@router.post("/v1/completions")
async def completions(
    body: CompletionRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> Response:
    """Continues bare texts."""
    job = await while_connected(request.receive, _continue(body, services, caller))
    return await _respond(job, CompletionWire(job), bool(body.stream), request, services, context)


async def _continue(body: CompletionRequest, services: Services, caller: Caller) -> AnswerJob:
    """The job of bare texts."""
    running = services.readiness.require_ready()
    require_model(body.model or None, running)
    _require_few(body, len(body.prompt), services)
    encoder = services.encoder
    prompts = [
        await encoder.text(caller.tenant, prompt) if isinstance(prompt, str) else prompt for prompt in body.prompt
    ]
    job = _job(body, prompts, CompletionShape(), services, running, caller)
    if body.echo:
        echoes = [
            await encoder.run(caller.tenant, _echo, services.engine, said, prompt, body.logprobs)
            for said, prompt in zip(body.prompt, prompts, strict=True)
        ]
        echoes = [echo for echo in echoes for _ in range(body.answers_per_prompt)]
        job = replace(job, echoes=tuple(echoes), only_prompts=body.max_tokens == 0)
    await _prepare(job, body, services)
    return job


def _echo(engine: Engine, said: str | TokenIds, prompt: TokenIds, logprobs: int | None) -> Echo:
    """A text comes back as it was sent, without what the tokenizer opens it with.

    Raises PromptError on an id outside the vocabulary.
    """
    tokens = () if logprobs is None else engine.texts(prompt)
    return Echo(said if isinstance(said, str) else engine.decode(prompt), tokens, logprobs)


def require_model(asked: str | None, running: Running, field: str = "model") -> None:
    """One model is served; answering for another would be a lie about what was guarded. None names none."""
    served = running.info.model
    if asked not in (None, served):
        raise ModelNotFoundError(f"The model {ascii(asked)[:100]} is not served here; {served!r} is.", field)


def measuring(
    services: Services, context: RequestContext, of: EngineRequest, hold_back_tokens: int | None
) -> Callable[[Event], None]:
    """What counts one answer, remembers its verdicts and tells the request's trace of it.

    `hold_back_tokens` as `Finish.sent_before` has it.
    """
    measure = services.metrics.answer_observer(
        context.started, tenant=context.asked.caller.tenant, policy=of.policy, hold_back_tokens=hold_back_tokens
    )

    def observe(event: Event) -> None:
        measure(event)
        if isinstance(event, Finish):
            context.trace.answered(event, services.engine.info.model, of.policy.version)
            services.recent.add(context.asked, of, event, services.engine.info.guards)

    return observe


async def _converse(
    body: ChatRequest | ResponsesRequest,
    shape: AnswerShape,
    services: Services,
    context: RequestContext,
    caller: Caller,
) -> AnswerJob:
    """The job of a conversation. There is no other way from one to the engine."""
    running = services.readiness.require_ready()
    require_model(body.model or None, running)
    log_dropped(body.history, context.request_id)
    use = body.tool_use(running.info)
    _require_few(body, 1, services)
    plan = None if use is None else await services.compilers.run(caller.tenant, services.engine.plan_tools, use)
    tools = () if use is None else use.tools
    variables = body.template_variables(running.info)
    prompt = await services.encoder.chat(caller.tenant, body.to_engine(), tools, variables)
    job = _job(body, [prompt], shape, services, running, caller, plan)
    if body.moderation is not None:
        require_model(body.moderation.model, running, "moderation.model")
        told = BothSides(running.info.model, running.info.guards, job.requests[0].policy, caller.is_operator)
        job = replace(job, moderation=told)
    await _prepare(job, body, services, plan)
    return job


def _require_few(body: SamplingBody, prompts: int, services: Services) -> None:
    answers, most = body.answers_per_prompt * prompts, services.config.max_answers
    if answers > most:
        raise InvalidRequestError(f"'n' times the number of prompts: got {answers}, wanted at most {most}.", "n")


def _require_tellable(body: SamplingBody, prompts: Sequence[TokenIds]) -> None:
    """What is told of prompts is made and sent as a whole. Raises InvalidRequestError where it would be too much."""
    if (alternatives := body.prompt_logprob_count) is None:
        return
    tokens, field = sum(map(len, prompts)) * body.answers_per_prompt, body.field_of("prompt_logprobs")
    if tokens * (alternatives + 1) > MAX_TOLD:
        raise InvalidRequestError(
            f"'{field}': {tokens} tokens of prompts, with {alternatives} alternatives each, are "
            f"{tokens * (alternatives + 1)} log-probabilities; wanted at most {MAX_TOLD}: ask for fewer alternatives, "
            "answers or prompts at a time.",
            field,
        )


def _job(
    body: SamplingBody,
    prompts: Sequence[TokenIds],
    shape: AnswerShape,
    services: Services,
    running: Running,
    caller: Caller,
    plan: ToolPlan | None = None,
) -> AnswerJob:
    _require_tellable(body, prompts)
    config = services.config
    defaults, least = running.info.defaults, body.min_tokens or 0
    limits = [body.token_limit or config.default_max_tokens or defaults.max_tokens, defaults.most_tokens]
    limit = min((each for each in limits if each is not None), default=None)
    if limit is not None and least > limit:
        raise InvalidRequestError(f"'min_tokens': got {least}, wanted at most the token limit, {limit}.", "min_tokens")
    # The engine's ids are made here: a caller may send one x-request-id twice at a time.
    job_id = shape.id_prefix + secrets.token_hex(16)
    policy = running.policy_for(caller)
    requests: list[EngineRequest] = []
    asked = body.grammar()
    form = asked if plan is None or plan.grammar is None else plan.grammar
    for prompt in prompts:
        room = running.info.max_model_tokens - len(prompt)
        if limit is not None and body.token_limit is not None:
            max_tokens = limit
        else:  # a prompt without room is left to the engine, whose error says how long it is
            max_tokens = max(1, least, room if limit is None else min(limit, room))
        sampling = body.sampling(max_tokens, asked, defaults)
        body.require_honoured(sampling, running.info)
        special = plan is not None and plan.special_tokens
        for answer in range(body.answers_per_prompt):
            own = replace(sampling, grammar=form, seed=body.seed_of(answer))  # what `prepare` made is for all of them
            engine_id = f"{job_id}-{len(requests)}"
            requests.append(EngineRequest(engine_id, prompt, own, policy, special, tenant=caller.tenant))
    return AnswerJob(
        id=job_id,
        created=int(time.time()),
        model=running.info.model,
        requests=tuple(requests),
        answers_per_prompt=body.answers_per_prompt,
        wants_logprobs=body.logprob_count is not None,
        prompt_logprobs=body.prompt_alternatives,
        wants_usage_chunk=body.wants_usage_chunk,
        wants_usage_everywhere=body.wants_usage_everywhere,
        shape=shape,
        abstention=abstention_for(caller, config),
        parser=PlainText if plan is None else plan.parser,
    )


async def _prepare(job: AnswerJob, body: SamplingBody, services: Services, plan: ToolPlan | None = None) -> None:
    """Raises InvalidRequestError naming the field whose value the engine cannot work with."""
    sampling = job.requests[0].sampling  # the answers to one request differ in their seeds only
    try:
        if sampling.grammar is None and not sampling.bad_words:  # done before another thread would have begun
            services.engine.prepare(sampling)
        else:
            await services.compilers.run(job.requests[0].tenant, services.engine.prepare, sampling)
    except InvalidOptionError as error:
        of_tools = error.param == "grammar" and plan is not None and plan.grammar is not None
        field = "tools" if of_tools else body.field_of(error.param)
        raise InvalidRequestError(f"'{field}': {error}", field) from error


async def _respond(
    job: AnswerJob,
    wire: Wire,
    stream: bool,
    request: Request,
    services: Services,
    context: RequestContext,
) -> Response:
    hold_back_tokens = services.config.hold_back_tokens
    running = len(job.requests)

    def observer(of: EngineRequest) -> Observer:
        lag = hold_back_tokens if stream else None
        measure, spent = measuring(services, context, of, lag), spending(context.spend)

        async def observe(event: Event) -> None:
            nonlocal running
            measure(event)
            spent(event)
            if isinstance(event, Finish):
                await services.audit.answered(context.asked, of, event, lag)
                running -= 1
                if not running:  # a slow reader of a stream holds up no reload
                    context.leave()
            services.readiness.require_agreement()

        return observe

    context.spend(sum(len(each.prompt_token_ids) for each in job.requests[:: job.answers_per_prompt]))
    if stream:
        agree = services.readiness.require_agreement
        return StreamedResponse(services.engine, job, wire, hold_back_tokens, observer, agree)
    answers = await while_connected(request.receive, collect(services.engine, job.requests, observer))
    response = await _written(job, wire, answers)
    services.readiness.require_agreement()
    return response


async def _written(job: AnswerJob, wire: Wire, answers: Sequence[Answer]) -> Response:
    """The whole answer, beside the event loop where it tells much of prompts."""

    def write() -> Response:
        return JSONResponse(wire.whole(job.whole(answers)))

    told = any(each.sampling.prompt_logprobs is not None for each in job.requests)
    return await asyncio.to_thread(write) if told else write()
