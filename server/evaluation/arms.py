"""What is compared: the model without a guard, and with each guard. One arm is one row of the table.

In-process arms run one after another, each an engine of its own behind the same app as `serve`, reached without a
network. Remote arms are servers that somebody started; the guards of each are asked of it.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
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
    """One guard of an arm. `digest` is the artifact's, None where the server does not tell it."""

    name: str
    skill: str
    method: str
    kind: str
    digest: str | None


@dataclass(frozen=True)
class Arm:
    """One configuration. `connect` gives a client to its server, which is ready then."""

    name: str
    model: str
    guards: tuple[ArmGuard, ...]
    connect: Connect
    scores: bool
    """Whether the caller may see scores."""

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
    artifact, method = loaded.artifact, loaded.method
    return ArmGuard(artifact.name, artifact.manifest.skill, method.name, method.kind.value, artifact.digest)


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
    guards = tuple(ArmGuard(row["name"], row["skill"], row["method"], row["kind"], row.get("digest")) for row in rows)
    return Arm(
        name="+".join(guard.name for guard in guards) or BASELINE,
        model=found["models"][0]["id"],
        guards=guards,
        connect=partial(_remote, address, key),
        scores=bool(rows) and all("digest" in row for row in rows),
    )
