"""Whether the server may generate: never before every guard has proved on the live engine that it works."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from guards.core.policy import Policy
from guards.core.version import version
from guards.errors import SkillguardError
from server.admission import Admission
from server.audit.auditor import Auditor
from server.auth import Caller
from server.combinations import combined
from server.coverage import accepted
from server.engines.base import Engine, EngineInfo, GuardInfo
from server.errors import AuditError, ChangeRefusedError, NotReadyError, UnverifiedError
from server.keyring import KeysFile
from server.policies import default_policy, require_known, require_shadowable, require_tenants, shadowed, tenant_policy

logger = logging.getLogger("skillguard.server")

_RETRY_AFTER_SECONDS = 5
"""Loading and canaries take seconds to minutes; a client that asks this often costs nothing."""
VERIFY_SECONDS = 3600.0
"""For all canaries. A large model on a CPU, with many guards, may take minutes; one that hangs would hold reloads up
for ever, and canaries on schedule would end without a word.
"""


class Phase(StrEnum):
    """Where the server is in its life. FAILED is final: what does not verify once is not tried again."""

    STARTING = "starting"
    VERIFYING = "verifying"
    READY = "ready"
    RELOADING = "reloading"
    """Another artifact takes a guard's place; no request runs."""
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Running:
    """What is known once the engine runs: the facts about it, and how its guards judge."""

    info: EngineInfo
    policy: Policy
    """For callers whose tenant says nothing else."""
    policy_version: int = 1
    """Counts the changes that were made while the server runs, this one included."""

    def policy_for(self, caller: Caller) -> Policy:
        """What holds for one caller."""
        return tenant_policy(self.policy, caller.policy)


class Readiness:
    """Starts and verifies the engine, and answers for its state. One per app."""

    def __init__(
        self,
        engine: Engine,
        shadow: Collection[str],
        keys: KeysFile | None,
        audit: Auditor,
        know: Callable[[Iterable[GuardInfo]], object] = lambda _: None,
        *,
        canary_interval_seconds: float | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`know` is told the guards as soon as the engine runs."""
        self._engine = engine
        self._audit = audit
        self._know = know
        self._canary_interval_seconds = canary_interval_seconds
        self._sleep = sleep
        self._shadow = shadow
        self._keys = keys
        self._running: Running | None = None
        self.admission = Admission()
        self.changing = asyncio.Lock()
        """Held by whoever exchanges a guard or verifies them again, which takes as long as its canaries."""
        self.judging = asyncio.Lock()
        """Held by whoever changes the policy, and behind `changing` by whoever exchanges a guard."""
        self.phase = Phase.STARTING
        self.reasons: dict[str, str] = {}
        """Guard name -> why it did not verify. For the operator."""
        self.failure: str | None = None
        """Why the start failed as a whole. For the operator."""
        self.settled = asyncio.Event()
        """Set once the start is over, one way or the other; a command line waits for it to exit with an error."""

    async def live(self) -> None:
        """Start and verify, then verify again from time to time. Ends where nothing is left to verify."""
        await self.bring_up()
        while self._canary_interval_seconds is not None and self.phase in (Phase.READY, Phase.RELOADING):
            await self._sleep(self._canary_interval_seconds)
            await self.check_again()

    async def check_again(self) -> None:
        """The canaries once more. A guard that no longer agrees closes the server for good, as at the start.

        It is closed before that is recorded: nothing is answered while a slow disk is waited for.
        """
        async with self.changing:
            if self.ready:
                await self._check_again()

    async def _check_again(self) -> None:
        try:
            reasons = unverified(await self._verified(), info := self._engine.info)
        except Exception as error:
            logger.exception("the guards could not be verified again")
            self._fail(f"{type(error).__name__}: {error}")
            return
        self._settle(reasons)
        try:
            await self._audit.canaries(reasons, info.guards, "schedule")
        except AuditError as error:  # counted; the guards are as they were found, recorded or not
            logger.error("the guards were verified again, which is not recorded: %s", error)

    async def _verified(self) -> Mapping[str, str | None]:
        """What the canaries say. Raises TimeoutError where one is never answered: they go first, but wait for running
        answers to make room.
        """
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                return await self._engine.verify()
        except TimeoutError as error:
            raise TimeoutError(f"the canaries were not answered within {VERIFY_SECONDS:g} seconds") from error

    async def bring_up(self) -> None:
        """Start, then verify. Never raises: what goes wrong becomes the phase FAILED, and the log says why."""
        try:
            await self._engine.start()
            info = self._engine.info
            self._running = Running(info, self._policy(info))
            self._know(info.guards)
            for sentence in accepted(info):
                logger.warning(sentence)
            for sentence in combined(info.beside):
                logger.info(sentence)
            self.phase = Phase.VERIFYING
            keys = None if self._keys is None else self._keys.in_force
            await self._audit.started(info, self._running.policy, self._running.policy_version, version(), keys)
            reasons = unverified(await self._verified(), info)
            await self._audit.canaries(reasons, info.guards, "start")
        except SkillguardError as error:
            self._fail(str(error))
        except Exception as error:  # an engine's own bug must leave a closed server, not a silent one
            logger.exception("the engine raised at start")
            self._fail(f"{type(error).__name__}: {error}")
        else:
            self._settle(reasons)
            if self.phase is Phase.READY:
                logger.info("ready: %s with %d verified guards", info.model, len(info.guards))
        finally:
            self.settled.set()

    def judge_by(self, policy: Policy) -> Running:
        """From the next request on; those that run keep what they began with."""
        running = self.require_running()
        self._running = replace(running, policy=policy, policy_version=running.policy_version + 1)
        return self._running

    async def exchange(self, policy: Policy, accept: Callable[[], Awaitable[object]]) -> Running:
        """Puts the artifact that the engine was offered in the place of a guard's, once the door is shut.

        It stays where every guard's canaries agree and `accept` does not raise; `policy` is what holds then. Otherwise
        the old one is put back and verified, and where that fails the server is closed for good. Raises
        ChangeRefusedError, or what `accept` raises.
        """
        self.require_ready()
        self.phase = Phase.RELOADING
        exchanged = False
        try:
            await self._engine.exchange()
            exchanged = True
            reasons = unverified(await self._verified(), info := self._engine.info)
            await self._audit.canaries(reasons, info.guards, "reload")
            if reasons:
                raise ChangeRefusedError(_sentence(reasons))
            await accept()
        except BaseException:
            await self._put_back(exchanged=exchanged)
            raise
        self._running = replace(self.require_running(), info=info)
        self._know(info.guards)
        self.phase = Phase.READY
        return self.judge_by(policy)

    async def _put_back(self, *, exchanged: bool) -> None:
        """What does not verify now is not tried again: nobody knows what the engine holds."""
        try:
            if exchanged:
                await self._engine.exchange()
            reasons = unverified(await self._verified(), info := self._engine.info)
            with suppress(AuditError):  # which is counted, and may be why they are put back
                await self._audit.canaries(reasons, info.guards, "reload")
        except Exception as error:
            logger.exception("the guards could not be put back")
            self._fail(f"the guards could not be put back: {type(error).__name__}: {error}")
        else:
            self._settle(reasons)

    def _settle(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        if reasons:
            self._fail(_sentence(reasons))
        else:
            self.phase = Phase.READY

    def _policy(self, info: EngineInfo) -> Policy:
        """Raises ConfigError where a setting or a tenant's policy names what is not there, or cannot be so."""
        require_known(info.guards, self._audit.scores, "audit_scores")
        if self._keys is not None:
            self._keys.require(lambda tenants: require_tenants(self._engine.info.guards, tenants))
        require_shadowable(info.guards, self._shadow, "shadow")
        return shadowed(default_policy(info.guards), self._shadow)

    def _fail(self, failure: str) -> None:
        self.phase = Phase.FAILED
        self.failure = failure
        logger.error("not serving: %s", failure)

    @property
    def engine_died(self) -> bool:
        """The engine ran and no longer does. Only a restart of the process helps."""
        return self.phase in (Phase.VERIFYING, Phase.READY) and not self._engine.healthy()

    @property
    def ready(self) -> bool:
        """Whether generation is allowed now."""
        return self.phase is Phase.READY and self._engine.healthy()

    @property
    def serving(self) -> bool:
        """Whether a request that comes now is let in at once."""
        return self.ready and self.admission.open

    @property
    def running(self) -> Running | None:
        """None until the engine runs, and when its start failed."""
        return self._running

    def is_verified(self, guard: str) -> bool:
        """Whether this guard's canaries agreed."""
        return self.phase in (Phase.READY, Phase.FAILED) and self._running is not None and guard not in self.reasons

    def require_running(self) -> Running:
        """For what only describes the engine. Raises NotReadyError."""
        if self._running is None:
            raise self._refusal()
        return self._running

    def require_ready(self) -> Running:
        """For everything that runs the model. Raises NotReadyError."""
        if not self.ready:
            raise self._refusal()
        return self.require_running()

    def require_agreement(self) -> None:
        """For whatever is about to go out. Raises UnverifiedError once guards were found not to agree: what began under
        them ends too.
        """
        if self.phase is Phase.FAILED:
            raise UnverifiedError(f"the server was closed while this ran: {self.failure}")

    def _refusal(self) -> NotReadyError:
        match self.phase:
            case Phase.STARTING:
                return NotReadyError("The model is still loading; try again later.", _RETRY_AFTER_SECONDS)
            case Phase.RELOADING:
                return NotReadyError("A guard is being exchanged; try again later.", _RETRY_AFTER_SECONDS)
            case Phase.VERIFYING if self._engine.healthy():
                return NotReadyError("The guards are still being verified; try again later.", _RETRY_AFTER_SECONDS)
            case Phase.FAILED if self.reasons:
                names = ", ".join(self.reasons)
                return NotReadyError(
                    f"Verification failed for guard {names}; nothing is generated until the operator repairs it.",
                    retry_after_seconds=None,
                )
            case Phase.FAILED:
                return NotReadyError("The engine did not start; the operator's log says why.", None)
            case Phase.STOPPING:
                return NotReadyError("The server is stopping.", _RETRY_AFTER_SECONDS)
            case _:
                return NotReadyError("The engine has stopped working; the server must be restarted.", None)


def _sentence(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"guard {name}: {reason}" for name, reason in reasons.items())


def unverified(results: Mapping[str, str | None], info: EngineInfo) -> dict[str, str]:
    """Guard name -> reason, for each guard that did not prove itself; silence about a guard is no proof."""
    reasons = {}
    for guard in info.guards:
        reason = results.get(guard.name, "the engine did not report on it")
        if reason is not None:
            reasons[guard.name] = reason
    return reasons
