"""GET /v1/verdicts: what guards made of the last answers, without their text."""

from typing import Annotated

from fastapi import APIRouter, Query

from server.context import CallerDep, ServicesDep
from server.errors import ForbiddenError
from server.recent import MOST
from server.routes.reading import reads

router = APIRouter()


@reads(router, "/v1/verdicts")
async def verdicts(
    services: ServicesDep, caller: CallerDep, limit: Annotated[int, Query(ge=1, le=MOST)] = 100
) -> dict[str, object]:
    """For operators, of their own tenant: the newest first. Kept in memory, by each process for itself."""
    if not caller.is_operator:
        raise ForbiddenError("Verdicts are for operators; use a key of role operator.")
    return {
        "object": "list",
        "most": MOST,
        "all_tenants": caller.sees_all_tenants,
        "data": [each.told() for each in services.recent.of(caller, limit)],
    }
