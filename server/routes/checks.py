"""POST /v1/checks: every guard's verdict on a prompt, by one forward pass and without an answer."""

import secrets

from fastapi import APIRouter, Request

from guards.core.verdict import Verdict
from server.auth import Caller
from server.context import CallerDep, ContextDep, RequestContext, Services, ServicesDep
from server.engines.events import GuardScore
from server.generation import while_connected
from server.judging import Judged, hits_of, judged
from server.openai import CheckRequest
from server.openai.history import log_dropped, require_shown
from server.readiness import Running
from server.routes.generation import require_model
from server.routes.posted import PostedRoute

router = APIRouter(route_class=PostedRoute)


@router.post("/v1/checks")
async def checks(
    body: CheckRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """The caller's own verdicts for everybody; scores, thresholds and places for operators."""
    running = services.readiness.require_ready()
    prompt = await while_connected(request.receive, prompt_of(body, services, context, caller, running))
    context.spend(len(prompt))
    found = await checked(prompt, request, services, context, caller, running)
    return {
        "object": "list",
        "model": running.info.model,
        "prompt_tokens": len(prompt),
        "data": [row(each.score, each.verdict, caller.is_operator) for each in found],
    }


async def prompt_of(
    body: CheckRequest, services: Services, context: RequestContext, caller: Caller, running: Running
) -> tuple[int, ...]:
    """The token ids that are asked about."""
    require_model(body.model or None, running)
    encoder = services.encoder
    if body.messages is not None:
        log_dropped(body.messages, context.request_id)
        require_shown(body.messages, running.info)
        said = [message.to_engine() for message in body.messages]
        return await encoder.chat(caller.tenant, said, (), body.chat_template_kwargs or {})
    if isinstance(body.prompt, str):
        return await encoder.text(caller.tenant, body.prompt)
    assert body.prompt is not None, "the protocol model holds one of the two"
    return body.prompt


async def checked(
    prompt: tuple[int, ...],
    request: Request,
    services: Services,
    context: RequestContext,
    caller: Caller,
    running: Running,
) -> tuple[Judged, ...]:
    """Every guard's verdict under the caller's policy, which is recorded. Raises AuditError where it cannot be."""
    policy = running.policy_for(caller)
    check = services.engine.check(prompt, f"check-{secrets.token_hex(16)}", policy, tenant=caller.tenant)
    scores = await while_connected(request.receive, check)
    services.readiness.require_agreement()
    found = judged(running.info.guards, scores, policy)
    await services.audit.checked(context.asked, policy, [(hit, [0]) for hit in hits_of(found, policy)])
    return found


def row(score: GuardScore, verdict: Verdict, for_operator: bool) -> dict[str, object]:
    """A verdict, with what operators see of it."""
    told: dict[str, object] = {
        "guard": score.guard,
        "skill": score.skill,
        "method": score.method,
        "verdict": verdict.value,
    }
    if for_operator:
        told |= {"score": score.score, "tau": score.tau, "layers": list(score.layers), "part": score.part}
    return told
