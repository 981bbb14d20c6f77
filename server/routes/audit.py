"""GET /v1/audit: how far the audit log is written, for whoever notes its head outside."""

from fastapi import APIRouter

from server.auth import DEFAULT_TENANT
from server.context import CallerDep, ServicesDep
from server.errors import ForbiddenError
from server.routes.reading import reads

router = APIRouter()


@reads(router, "/v1/audit")
async def audit(services: ServicesDep, caller: CallerDep) -> dict[str, object]:
    """For operators: lines so far, the last one's hash, and why nothing is written if nothing is."""
    if not caller.is_operator:
        raise ForbiddenError("The audit log is for operators; use a key of role operator.")
    if not caller.sees_server:
        raise ForbiddenError(
            "The audit log is of all tenants; use a key of role operator that is of no tenant but "
            f"{DEFAULT_TENANT!r}, or one of role admin."
        )
    if (log := services.audit.log) is None:
        return {"object": "audit", "enabled": False}
    link = log.link
    return {
        "object": "audit",
        "enabled": True,
        "lines": link.lines,
        "head": link.head,
        "records": dict(sorted(log.written.items())),
        "failures": log.failures,
        "failing": log.failing,
    }
