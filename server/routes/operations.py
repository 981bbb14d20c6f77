"""For orchestrators: GET /health, GET /ready, GET and POST /ping, and GET /metrics.

The first two also where charts for NIM (`/v1/health/...`) and KServe (`/v2/health/...`) look, in their shapes.
"""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from server.auth import Role
from server.context import CallerDep, ServicesDep
from server.readiness import Phase, Readiness
from server.routes.reading import reads

router = APIRouter()


@reads(router, "/health")
async def health(services: ServicesDep) -> JSONResponse:
    """Alive, also while the model loads. 503 once a running engine has died, since only a restart mends that."""
    dead = services.readiness.engine_died
    return JSONResponse({"status": "dead" if dead else "ok"}, status_code=503 if dead else 200)


@reads(router, "/ready")
async def ready(services: ServicesDep, caller: CallerDep) -> JSONResponse:
    """200 only while every guard is verified and the engine lives. Reasons are in the log and in /v1/guards.

    Where there are keys, only operators are told which guards there are: a name may tell a skill.

    A keys file that cannot be used takes no server out, since the keys that it still holds go on, and nor does an audit
    log that is not written, since an answer that needs no record goes out. Operators are told of both, of the former
    unless they are one tenant's among several: it names others.
    """
    readiness, keys = services.readiness, services.keys.file
    running = readiness.running
    names = [guard.name for guard in running.info.guards] if running else []
    body: dict[str, object] = {"status": _status(readiness)}
    if keys is None or caller.is_operator:
        body["guards"] = {name: readiness.is_verified(name) for name in names}
    if keys is not None and caller.is_operator and caller.sees_server:
        body["keys_file"] = {"valid": keys.trouble is None, "reason": keys.trouble}
    if (log := services.audit.log) is not None and caller.is_operator:
        body["audit"] = "ok" if log.failing is None else "failing"
    return JSONResponse(body, status_code=200 if readiness.serving else 503)


@reads(router, "/v1/health/live")
async def nim_live(services: ServicesDep) -> JSONResponse:
    """As `/health`, in NIM's shape."""
    return _nim(not services.readiness.engine_died, "live")


@reads(router, "/v1/health/ready")
async def nim_ready(services: ServicesDep) -> JSONResponse:
    """As `/ready`, in NIM's shape."""
    return _nim(services.readiness.serving, "ready")


@reads(router, "/v2/health/live")
async def kserve_live(services: ServicesDep) -> JSONResponse:
    """As `/health`, in the shape of the Open Inference Protocol, KServe's."""
    live = not services.readiness.engine_died
    return JSONResponse({"live": live}, status_code=200 if live else 503)


@reads(router, "/v2/health/ready")
async def kserve_ready(services: ServicesDep) -> JSONResponse:
    """As `/ready`, in that shape."""
    ready = services.readiness.serving
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


def _status(readiness: Readiness) -> str:
    if readiness.engine_died:
        return "dead"
    waiting = readiness.ready and not readiness.admission.open
    return (Phase.RELOADING if waiting else readiness.phase).value


def _nim(holds: bool, state: str) -> JSONResponse:
    status = state if holds else f"not {state}"
    body = {"object": "health.response", "message": f"Service is {status}.", "status": status}
    return JSONResponse(body, status_code=200 if holds else 503)


@router.api_route("/ping", methods=["GET", "HEAD", "POST"])
async def ping(services: ServicesDep) -> Response:
    """As SageMaker asks, and sends requests from the first 200 on: so 200 only while `/ready` says so."""
    return Response(status_code=200 if services.readiness.serving else 503)


@reads(router, "/metrics")
async def metrics(services: ServicesDep, caller: CallerDep) -> Response:
    """Prometheus' text format. Users are told no scores here either; they get here where there are no keys.

    A key of one tenant among several is told of that tenant alone.
    """
    metrics = services.metrics
    text = metrics.text(scores=caller.role is not Role.USER) if caller.sees_server else metrics.text_of(caller.tenant)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
