"""POST /v1/attributions: which tokens of a prompt a guard's verdict comes from. For operators."""

import secrets

from fastapi import APIRouter, Request

from guards.core.trace import PartTrace
from server.context import CallerDep, ContextDep, ServicesDep
from server.engines.errors import PromptTooLongError
from server.errors import ForbiddenError
from server.generation import while_connected
from server.openai import CheckRequest
from server.routes.checks import checked, prompt_of, row
from server.routes.posted import PostedRoute

router = APIRouter(route_class=PostedRoute)

MOST_TOKENS = 2048
"""Of a prompt: every token has a row of numbers for each guard."""


@router.post("/v1/attributions")
async def attributions(
    body: CheckRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """As `/v1/checks`, and for each detector what its parts read at every token, as if the prompt ended there.

    The tokens' texts are the caller's own prompt. Two forward passes.
    """
    if not caller.is_operator:
        raise ForbiddenError("Attributions are for operators; use a key of role operator.")
    running = services.readiness.require_ready()
    engine = services.engine
    prompt = await while_connected(request.receive, prompt_of(body, services, context, caller, running))
    if len(prompt) > MOST_TOKENS:
        raise PromptTooLongError(f"got {len(prompt)} prompt tokens, wanted at most {MOST_TOKENS}: shorten the prompt")
    context.spend(2 * len(prompt))
    found = await checked(prompt, request, services, context, caller, running)
    policy = running.policy_for(caller)
    tracing = engine.trace(prompt, f"trace-{secrets.token_hex(16)}", policy, tenant=caller.tenant)
    traces = {each.guard: each.parts for each in await while_connected(request.receive, tracing)}
    services.readiness.require_agreement()
    return {
        "object": "list",
        "model": running.info.model,
        "policy": policy.version,
        "prompt_tokens": len(prompt),
        "tokens": list(engine.texts(prompt)),
        "data": [
            row(each.score, each.verdict, for_operator=True)
            | {
                "mode": policy.rules[each.guard.name].mode.value,
                "kind": each.guard.kind.value,
                "parts": [_part(part) for part in traces.get(each.guard.name, ())],
            }
            for each in found
        ],
    }


def _part(part: PartTrace) -> dict[str, object]:
    return {
        "part": part.label,
        "tau": part.tau,
        "scores": list(part.score_T),
        "shares": None if part.share_T is None else list(part.share_T),
        "span": None if part.span is None else list(part.span),
    }
