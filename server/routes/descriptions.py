"""What is served: GET /v1/models, GET /v1/guards and GET /version."""

from fastapi import APIRouter

from guards.core.policy import Rule
from guards.core.version import version
from server.context import CallerDep, Services, ServicesDep
from server.engines.base import GuardInfo
from server.readiness import Running
from server.routes.generation import require_model
from server.routes.reading import reads

router = APIRouter()


@reads(router, "/v1/models")
async def models(services: ServicesDep) -> dict[str, object]:
    """The one model, in OpenAI's list shape."""
    running = services.readiness.require_running()
    return {"object": "list", "data": [_model(running, services.created)]}


@reads(router, "/v1/models/{model_id:path}")
async def model(model_id: str, services: ServicesDep) -> dict[str, object]:
    """The one model, if that is the one asked for; its name may contain slashes."""
    running = services.readiness.require_running()
    require_model(model_id, running)
    return _model(running, services.created)


@reads(router, "/version")
async def server_version(services: ServicesDep) -> dict[str, str]:
    """This program's version, and that of what runs the model."""
    info = services.readiness.require_running().info
    return {"version": version(), "engine": info.engine, "engine_version": info.engine_version}


@reads(router, "/v1/guards")
async def guards(services: ServicesDep, caller: CallerDep) -> dict[str, object]:
    """Every attached guard, in the mode that holds for this caller.

    Open while verification runs or has failed, when an operator needs it most.
    """
    running = services.readiness.require_running()
    rules = running.policy_for(caller).rules
    rows = [_guard(guard, rules[guard.name], services, caller.is_operator) for guard in running.info.guards]
    return {"object": "list", "data": rows}


def _model(running: Running, created: int) -> dict[str, object]:
    return {
        "id": running.info.model,
        "object": "model",
        "created": created,
        "owned_by": "skillguard",
        "max_model_len": running.info.max_model_tokens,
    }


def _guard(guard: GuardInfo, rule: Rule, services: Services, for_operator: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "name": guard.name,
        "skill": guard.skill,
        "method": guard.method,
        "kind": guard.kind,
        "mode": rule.mode.value,
        "scope": rule.scope.value,
        "verified": services.readiness.is_verified(guard.name),
        "template": guard.template.value,
        "frames": list(guard.frames),
    }
    if for_operator:
        row |= {
            "taus": list(rule.taus),
            "artifact_taus": list(guard.rule.taus),
            "layers": list(guard.layers),
            "digest": guard.digest,
            "pinned": guard.pinned,
            "signed_by": list(guard.signed_by),
            "template_sha256": guard.template_sha256,
            "template_difference": guard.template_difference,
            "detail": dict(guard.detail),
            "changed_by": list(guard.beside.changed_by),
            "acts_after": list(guard.beside.acts_after),
            "reason": services.readiness.reasons.get(guard.name),
        }
    return row
