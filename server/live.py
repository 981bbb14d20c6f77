"""What admins change of guards while the server runs: how they judge, and the artifact that they are.

A change holds from the next request on, until the server restarts; a request that runs keeps what it began with. What
cannot be recorded is not changed.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from guards.artifact.pins import ArtifactPath
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode
from guards.errors import SkillguardError
from server.audit.auditor import Asked, Auditor
from server.auth import LEAST_FACTOR, MOST_FACTOR
from server.engines.base import Engine, GuardInfo, TemplateState
from server.errors import AuditError, ChangeRefusedError, ConfigError, GuardNotFoundError, InvalidRequestError
from server.heap import thawed
from server.keyring import KeysFile
from server.metrics import Metrics
from server.policies import require_shadowable, require_tenants
from server.readiness import Readiness, Running


@dataclass(frozen=True)
class Judging:
    """What to change of how a guard judges; None leaves it. `tau_factor` is times the artifact's own taus."""

    mode: GuardMode | None = None
    taus: Sequence[float] | None = None
    tau_factor: float | None = None


class LiveChanges:
    """One change at a time."""

    def __init__(
        self,
        engine: Engine,
        readiness: Readiness,
        audit: Auditor,
        metrics: Metrics,
        keys: KeysFile | None,
        *,
        patience_seconds: float,
    ) -> None:
        """`patience_seconds`: how long a reload waits for running requests to end."""
        self._engine = engine
        self._readiness = readiness
        self._audit = audit
        self._metrics = metrics
        self._keys = keys
        self._patience_seconds = patience_seconds
        self._reloading: asyncio.Task[tuple[GuardInfo, Running]] | None = None

    async def judge(self, asked: Asked, name: str, change: Judging) -> tuple[GuardInfo, Running]:
        """Changes mode and taus. Raises GuardNotFoundError, InvalidRequestError, NotReadyError or AuditError."""
        moved = change.taus is not None or change.tau_factor is not None
        what = [*(["mode"] if change.mode is not None else []), *(["taus"] if moved else [])]
        async with self._readiness.judging:
            running = self._readiness.require_ready()
            guard = guard_of(running, name)
            with self._counted(name, what):
                before = running.policy.rules[name]
                after = _rule(guard, before, change)
                policy = Policy({**running.policy.rules, name: after})
                await self._audit.asked_for_change(
                    asked, name, _told(guard, before), _told(guard, after), **_versions(running, policy)
                )
                return guard, self._readiness.judge_by(policy)

    async def reload(self, asked: Asked, name: str, source: ArtifactPath | None) -> tuple[GuardInfo, Running]:
        """Puts another artifact in a guard's place. It keeps the mode, and takes the new artifact's taus.

        Goes on to the end once it began, whoever gives up waiting. Raises GuardNotFoundError, ChangeRefusedError,
        NotReadyError or AuditError, with the guard as before; where it could not be put back, nothing is served.
        """
        self._reloading = asyncio.create_task(self._reload(asked, name, source))
        return await asyncio.shield(self._reloading)

    async def _reload(self, asked: Asked, name: str, source: ArtifactPath | None) -> tuple[GuardInfo, Running]:
        async with self._readiness.changing, self._readiness.judging:
            running = self._readiness.require_ready()
            old, before = guard_of(running, name), running.policy.rules[name]
            with self._counted(name, ["artifact"]):
                try:
                    new = await self._offered(old, source)
                    after = replace(new.rule, mode=before.mode)
                    policy = Policy({**running.policy.rules, name: after})

                    async def accept() -> None:
                        await self._audit.asked_for_change(
                            asked, name, _told(old, before), _told(new, after), **_versions(running, policy)
                        )

                    async with self._readiness.admission.shut(self._patience_seconds):
                        with thawed():
                            return new, await self._readiness.exchange(policy, accept)
                except AuditError:
                    raise
                except SkillguardError as error:
                    why = str(error)
                    if not self._readiness.ready:
                        why += "; nor could the guards be put back as they were: nothing is served until a restart"
                    more: dict[str, object] = {"refused": why, "policy_version": running.policy_version}
                    await self._audit.asked_for_change(asked, name, _told(old, before), None, **more)
                    raise ChangeRefusedError(why) from error

    async def _offered(self, old: GuardInfo, source: ArtifactPath | None) -> GuardInfo:
        """Raises SkillguardError for an artifact that cannot take the guard's place, before anybody waits."""
        new = await self._engine.offer(old.name, source)
        for field in ("skill", "kind"):
            got, wanted = getattr(new, field), getattr(old, field)
            if got != wanted:
                raise ChangeRefusedError(
                    f"the artifact's {field} is {got}, and guard {old.name!r} is of {wanted}: load it as another guard"
                )
        if new.template is TemplateState.CHANGED:
            raise ChangeRefusedError(
                f"{new.template_difference}: the artifact was calibrated with another chat template or tokenizer"
            )
        if self._keys is not None:
            guards = [new if each.name == old.name else each for each in self._engine.info.guards]
            self._keys.try_out(lambda tenants: require_tenants(guards, tenants))
        return new

    @contextmanager
    def _counted(self, name: str, what: Sequence[str]) -> Iterator[None]:
        made = False
        try:
            yield
            made = True
        finally:
            for each in what:
                self._metrics.observe_change(name, each, made=made)


def guard_of(running: Running, name: str) -> GuardInfo:
    """Raises GuardNotFoundError."""
    for guard in running.info.guards:
        if guard.name == name:
            return guard
    known = ", ".join(guard.name for guard in running.info.guards) or "none"
    raise GuardNotFoundError(f"No guard named {ascii(name)[:100]}; known: {known}.", "name")


def _rule(guard: GuardInfo, before: Rule, change: Judging) -> Rule:
    """Raises InvalidRequestError for what a guard cannot judge by."""
    mode = before.mode if change.mode is None else change.mode
    if mode is GuardMode.SHADOW:
        try:
            require_shadowable([guard], [guard.name], "'mode'")
        except ConfigError as error:
            raise InvalidRequestError(str(error), "mode") from error
    taus = before.taus
    if change.tau_factor is not None:
        if not guard.rule.taus or min(guard.rule.taus) <= 0:
            raise InvalidRequestError(
                f"'tau_factor': guard {guard.name!r} has no tau above 0, so none that a factor moves the right way.",
                "tau_factor",
            )
        taus = tuple(tau * change.tau_factor for tau in guard.rule.taus)
    elif change.taus is not None:
        taus = tuple(change.taus)
        _require_taus(taus, guard)
    return replace(before, mode=mode, taus=taus)


def _require_taus(taus: Sequence[float], guard: GuardInfo) -> None:
    """Of the artifact's signs, and finite and not 0 in float32 under any factor of a tenant's."""
    own = guard.rule.taus
    if len(taus) != len(own):
        raise InvalidRequestError(
            f"'taus': got {len(taus)}, wanted one for each of the guard's {len(own)} part(s).", "taus"
        )
    with np.errstate(over="ignore", under="ignore"):
        reach = [np.array([tau * factor for factor in (LEAST_FACTOR, 1, MOST_FACTOR)], np.float32) for tau in taus]
    for index, (tau, of, in_float32) in enumerate(zip(taus, own, reach, strict=True)):
        if not np.isfinite(in_float32).all() or not in_float32.all() or np.sign(tau) != np.sign(of):
            raise InvalidRequestError(
                f"'taus[{index}]': got {tau!r}, wanted a number of the sign of the artifact's {of!r}, finite and "
                f"not 0 in float32, also times a tenant's {LEAST_FACTOR:g} to {MOST_FACTOR:g}.",
                "taus",
            )


def _told(guard: GuardInfo, rule: Rule) -> dict[str, object]:
    told: dict[str, object] = {"mode": rule.mode.value, "taus": list(rule.taus), "digest": guard.digest}
    return {**told, "signed_by": list(guard.signed_by)} if guard.signed_by else told


def _versions(running: Running, policy: Policy) -> dict[str, object]:
    """Of the change, and of what it leads to."""
    return {"policy": policy.version, "policy_version": running.policy_version + 1}
