"""What is compared: the model without a guard, and with each guard. One arm is one row of the table.

In-process arms run one after another, each an engine of its own behind the same app as `serve`, reached without a
network. Remote arms are servers that somebody started; the guards of each are asked of it.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from guards.artifact.signatures import trusted_by
from guards.methods.loaded import LoadedGuard, read_guards
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError, EvaluationError
from server.evaluation.client import TIMEOUT_SECONDS

BASELINE = "none"
EngineOptions = EmbeddedOptions | VllmOptions
Connect = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]


@dataclass(frozen=True)
class ArmGuard:
    """One guard of an arm, and how it judges there.

    `digest` is the artifact's. It and the taus are None where the server does not tell them, as to a user's key.
    """

    name: str
    skill: str
    method: str
    kind: str
    digest: str | None
    scope: str
    taus: tuple[float, ...] | None
    """Those that hold for the caller: the artifact's own, times a factor, or what an admin set."""
    artifact_taus: tuple[float, ...] | None

    @property
    def hidden(self) -> bool:
        """Whether nobody here can tell this guard from another one of its name."""
        return self.digest is None or self.taus is None


@dataclass(frozen=True)
class Arm:
    """One configuration. `connect` gives a client to its server, which is ready then."""

    name: str
    model: str
    guards: tuple[ArmGuard, ...]
    connect: Connect
    scores: bool
    """Whether the caller may see scores."""
    guards_now: Callable[[], tuple[ArmGuard, ...]] | None = None
    """Asks a server that others may change for its guards again."""

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the guards that can abstain."""
        return tuple(guard.name for guard in self.guards if guard.kind == "detector")


def engine_arms(options: EngineOptions, together: bool) -> list[Arm]:
    """The baseline and one arm for each artifact, or one for all. Raises ArtifactError."""
    model = options.name
    loaded = read_guards(options.artifacts, trusted=trusted_by(options.trusted_key_files))
    if BASELINE in loaded:
        raise ConfigError(f"--artifacts: got a folder named {BASELINE!r}, which is the arm without guards; rename it")
    groups = [tuple(loaded)] if together else [(name,) for name in loaded]
    folders = dict(zip(loaded, options.artifacts, strict=True))

    def arm(names: Sequence[str]) -> Arm:
        guards = tuple(_arm_guard(loaded[name]) for name in names)
        own = options.model_copy(update={"artifacts": tuple(folders[name] for name in names), "served_name": model})
        return Arm("+".join(names) or BASELINE, model, guards, partial(_in_process, own), scores=bool(guards))

    return [arm(names) for names in [(), *groups]]


def _arm_guard(loaded: LoadedGuard) -> ArmGuard:
    artifact, method, taus = loaded.artifact, loaded.method, loaded.bound.taus
    return ArmGuard(
        name=artifact.name,
        skill=artifact.manifest.skill,
        method=method.name,
        kind=method.kind.value,
        digest=artifact.digest,
        scope=loaded.guard.scope.value,
        taus=taus,
        artifact_taus=taus,
    )


def _told_guard(row: Mapping[str, Any]) -> ArmGuard:
    """Of a row of /v1/guards."""
    held, own = (tuple(row[name]) if name in row else None for name in ("taus", "artifact_taus"))
    return ArmGuard(
        **{name: row[name] for name in ("name", "skill", "method", "kind", "scope")},
        digest=row.get("digest"),
        taus=held,
        artifact_taus=own,
    )


@asynccontextmanager
async def _in_process(options: EngineOptions) -> AsyncIterator[httpx.AsyncClient]:
    """The app of `serve` in this process. Raises EvaluationError where it does not become ready."""
    from transformers.utils.logging import disable_progress_bar

    from server.app import create_app
    from server.config import ServerConfig
    from server.create import create_engine

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    disable_progress_bar()
    # Nobody else can connect, and AUROC needs scores.
    app = create_app(create_engine(options), ServerConfig(anonymous_role="operator"))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        readiness = app.state.services.readiness
        await readiness.settled.wait()
        if not readiness.ready:
            raise EvaluationError(f"the engine did not become ready: {readiness.failure}")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as http:
            yield http


@asynccontextmanager
async def _remote(url: str, key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        yield http


def remote_arms(urls: Sequence[str], baseline_url: str, key: str | None) -> list[Arm]:
    """The baseline and one arm for each server, named after its guards that act.

    Raises ServerUnreachableError, and EvaluationError where the servers cannot be compared.
    """
    baseline = _describe(baseline_url, key)
    if baseline.guards:
        names = ", ".join(guard.name for guard in baseline.guards)
        raise EvaluationError(f"--baseline-url {baseline_url}: got guards {names}, wanted a server started --unguarded")
    arms = [baseline]
    for url in urls:
        arm = _describe(url, key)
        if not arm.guards:
            raise EvaluationError(f"--url {url}: got a server without a guard that acts; start it with --artifacts")
        if arm.model != baseline.model:
            raise EvaluationError(f"--url {url}: serves {arm.model!r}, wanted the baseline's model {baseline.model!r}")
        if arm.name in [other.name for other in arms]:
            raise EvaluationError(f"--url {url}: a second server with the guards {arm.name}; give each once")
        arms.append(arm)
    return arms


def _describe(url: str, key: str | None) -> Arm:
    from server.evaluation.remote import fetch_server

    address = url.rstrip("/").removesuffix("/v1")
    found = fetch_server(address, key)
    if not found["ready"]:
        raise EvaluationError(f"{url}: got a server that is not ready ({found['state']}); its log says why")
    rows: list[dict[str, Any]] = [row for row in found["guards"] if row["mode"] == "enforce"]
    guards = tuple(map(_told_guard, rows))
    return Arm(
        name="+".join(guard.name for guard in guards) or BASELINE,
        model=found["models"][0]["id"],
        guards=guards,
        connect=partial(_remote, address, key),
        scores=bool(rows) and all("digest" in row for row in rows),
        guards_now=lambda: _describe(url, key).guards,
    )
