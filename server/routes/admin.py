"""/admin/guards: how guards judge and which artifacts they are, shown and changed, for keys of the role admin.

Others never get here (`server/keyring.py`), and are refused once more where they do.
"""

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends
from pydantic import Field, model_validator

from guards.artifact.pins import ArtifactPath
from guards.core.verdict import GuardMode
from server.auth import LEAST_FACTOR, MOST_FACTOR
from server.context import CallerDep, ContextDep, Services, ServicesDep
from server.engines.base import GuardInfo
from server.errors import InvalidRequestError
from server.keyring import require_admin
from server.live import Judging
from server.openai.body import Body, Listed, NonEmptyText
from server.openai.invalid import conflict
from server.readiness import Running
from server.routes.posted import PostedRoute
from server.routes.reading import reads


async def _admins_only(caller: CallerDep) -> None:
    require_admin(caller)


router = APIRouter(route_class=PostedRoute, dependencies=[Depends(_admins_only)])

NOTICE = (
    "Holds until the server restarts. To keep it, put it where the server starts from: the settings' artifacts and "
    "shadow, or a tenant's mode and tau_factor in the keys file."
)


class JudgingBody(Body):
    """What to change of how a guard judges."""

    mode: Literal["enforce", "shadow", "off"] | None = None
    taus: Annotated[Listed[float], Field(min_length=1)] | None = None
    tau_factor: Annotated[float, Field(ge=LEAST_FACTOR, le=MOST_FACTOR)] | None = None

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        if self.taus is not None and self.tau_factor is not None:
            raise conflict("taus", "'{field}' and 'tau_factor' do not go together; send one of them.")
        if self.mode is None and self.taus is None and self.tau_factor is None:
            raise conflict("mode", "Nothing to change: send '{field}', 'taus' or 'tau_factor'.")
        return self


class ReloadBody(Body):
    """Where the new artifact lies on the server's machine; by default where the guard's own lay.

    A digest may follow, as in the setting `artifacts`, and has to where the guard is pinned.
    """

    path: Annotated[NonEmptyText, Field(pattern=r"^[^\x00]+$")] | None = None

    @property
    def source(self) -> ArtifactPath | None:
        """Raises InvalidRequestError for a digest that is none."""
        try:
            return None if self.path is None else ArtifactPath.parse(self.path)
        except ValueError as error:
            raise InvalidRequestError(f"'path': {error}.", "path") from error


@reads(router, "/admin/guards")
async def guards(services: ServicesDep) -> dict[str, object]:
    """Every guard as it judges where a tenant's policy says nothing else."""
    running = services.readiness.require_running()
    return {
        "policy_version": running.policy_version,
        "guards": [_shown(guard, running, services) for guard in running.info.guards],
    }


@router.patch("/admin/guards/{name}")
async def judge(name: str, body: JudgingBody, services: ServicesDep, context: ContextDep) -> dict[str, object]:
    """Changes mode and taus, from the next request on."""
    mode = None if body.mode is None else GuardMode(body.mode)
    guard, running = await services.live.judge(context.asked, name, Judging(mode, body.taus, body.tau_factor))
    return _changed(guard, running, services)


@router.post("/admin/guards/{name}/reload")
async def reload(
    name: str, services: ServicesDep, context: ContextDep, body: ReloadBody | None = None
) -> dict[str, object]:
    """Puts another artifact in the guard's place, once running requests ended and if its canaries agree."""
    source = None if body is None else body.source
    guard, running = await services.live.reload(context.asked, name, source)
    return _changed(guard, running, services)


def _changed(guard: GuardInfo, running: Running, services: Services) -> dict[str, object]:
    return {**_shown(guard, running, services), "policy_version": running.policy_version, "notice": NOTICE}


def _shown(guard: GuardInfo, running: Running, services: Services) -> dict[str, object]:
    rule = running.policy.rules[guard.name]
    return {
        "name": guard.name,
        "skill": guard.skill,
        "method": guard.method,
        "kind": guard.kind.value,
        "digest": guard.digest,
        "pinned": guard.pinned,
        "signed_by": list(guard.signed_by),
        "mode": rule.mode.value,
        "taus": list(rule.taus),
        "artifact_taus": list(guard.rule.taus),
        "changed_by": list(guard.beside.changed_by),
        "acts_after": list(guard.beside.acts_after),
        "verified": services.readiness.is_verified(guard.name),
        "template": guard.template.value,
    }
