"""Makes records of what happens, and waits for them to be written where an answer depends on it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from guards.core.policy import Policy
from server.audit.log import AuditLog
from server.audit.records import (
    Fields,
    Kind,
    hits_of,
    record,
    score_fields,
    start_fields,
)
from server.audit.redaction import Redaction
from server.auth import Caller
from server.engines.base import EngineInfo, GuardInfo
from server.engines.events import Finish, Hit
from server.engines.request import EngineRequest
from server.errors import AuditError, GenerationError, NotReadyError, reply_of

logger = logging.getLogger("skillguard.audit")


CanaryRun = Literal["start", "schedule", "reload"]
"""Why canaries went through the engine."""


@dataclass(frozen=True)
class Asked:
    """Who asked for what: what every record of a request says."""

    request: str
    """The server's own id. A caller may send any `x-request-id`, and the same one twice."""
    client_request: str | None
    """The caller's, where there is one."""
    route: str
    caller: Caller

    @property
    def fields(self) -> Fields:
        """As records have it."""
        named: Fields = {} if self.client_request is None else {"client_request": self.client_request}
        return {
            "request": self.request,
            **named,
            "route": self.route,
            "key": self.caller.name,
            "tenant": self.caller.tenant,
        }


@dataclass
class Auditor:
    """The one place where records are made. Without a `log` hits are lines of the program's log, and nothing else.

    `scores` names guards of which every reading of a prompt is recorded. `redaction` is None where no text is.
    """

    log: AuditLog | None = None
    scores: Sequence[str] = ()
    redaction: Redaction | None = None
    decode: Callable[[Sequence[int]], str] = lambda _: ""
    """A prompt's text, from any thread."""

    async def started(
        self, info: EngineInfo, policy: Policy, policy_version: int, version: str, keys_file: object
    ) -> None:
        """`keys_file`: what holds of it, made of what JSON has; None without one.

        Raises AuditError: a server that is to refuse what it cannot record does not become ready.
        """
        if self.log is not None:
            cut = {"cut_bytes": self.log.cut_bytes} if self.log.cut_bytes else {}
            fields = {**start_fields(info, policy.rules), "keys_file": keys_file}
            policies: Fields = {"policy": policy.version, "policy_version": policy_version}
            await self.log.record([record(Kind.START, version=version, **policies, **fields, **cut)])

    def stopped(self) -> None:
        """The last record. Blocks until all are written."""
        if self.log is not None:
            self.log.put([record(Kind.STOP)])
            self.log.stop()

    async def canaries(self, reasons: Mapping[str, str], guards: Iterable[GuardInfo], when: CanaryRun) -> None:
        """What the canaries of each guard said; `reasons` of those that did not agree. Raises AuditError."""
        if self.log is not None:
            await self.log.record(
                [
                    record(
                        Kind.CANARIES,
                        guard=guard.name,
                        digest=guard.digest,
                        when=when,
                        agreed=guard.name not in reasons,
                        reason=reasons.get(guard.name),
                    )
                    for guard in guards
                ]
            )

    async def answered(
        self, asked: Asked, request: EngineRequest, finish: Finish, hold_back_tokens: int | None
    ) -> None:
        """Everything of one answer, before its end goes out. Raises AuditError."""
        found = [*hits_of(finish)]
        for _, hit, more in found:
            _log_hit(asked, hit, more)
        if self.log is None:
            return
        answer = {**asked.fields, "answer": request.request_id, "policy": request.policy.version}
        prompt: Fields = {"prompt_tokens": finish.prompt_tokens}
        if found and self.redaction is not None:
            prompt["text"] = await asyncio.to_thread(self._text, self.redaction, request.prompt_token_ids)
        records = [
            record(
                kind,
                **answer,
                **_score(hit),
                **more,
                **prompt,
                drawn_tokens=finish.drawn_before(hit),
                sent_tokens=finish.sent_before(hit, hold_back_tokens),
            )
            for kind, hit, more in found
        ]
        records += [
            record(Kind.SCORE, **answer, **score_fields(score))
            for score in finish.prompt_scores
            if score.guard in self.scores
        ]
        await self.log.record(records)

    async def checked(self, asked: Asked, policy: Policy, hits: Sequence[tuple[Hit, Sequence[int]]]) -> None:
        """What fired on texts that were only judged, each with the places of that text among the request's, from 0.

        Before their verdicts go out. Raises AuditError.
        """
        for hit, _ in hits:
            _log_hit(asked, hit, {})
        if self.log is not None:
            fields = {**asked.fields, "policy": policy.version}
            await self.log.record(
                [record(Kind.CHECK, **fields, **_score(hit), texts=list(texts)) for hit, texts in hits]
            )

    def failed(self, asked: Asked, error: Exception) -> None:
        """An error of ours that ended a request. Nobody waits: nothing of an answer goes out anyway.

        Its text is not recorded, since it may quote anything; the program's log has it.
        """
        shape = reply_of(error)
        if self.log is None or shape.status < 500 or isinstance(error, AuditError | NotReadyError):
            return
        faults = error.faults if isinstance(error, GenerationError) else ()
        told = [
            {"guard": of.guard, "digest": of.digest, "reading": of.reading.name.lower(), "position": of.position}
            for of in faults
        ]
        self.log.put([record(Kind.ERROR, **asked.fields, code=shape.code, error=type(error).__name__, guards=told)])

    async def changed(self, what: str, before: object, after: object) -> None:
        """An operator's change, before anything is answered under it. `before` and `after` are made of what JSON has.

        Raises AuditError.
        """
        if self.log is not None:
            await self.log.record([record(Kind.ADMIN, what=what, before=before, after=after)])

    async def asked_for_change(self, asked: Asked, guard: str, before: object, after: object, **more: object) -> None:
        """What somebody changes of a guard, before it is changed. Raises AuditError, whatever answers without a record
        get: what cannot be recorded is not changed. Without a log it is a line of the program's.
        """
        what: Fields = {"what": "guard", **asked.fields, "guard": guard, "before": before}
        fields: Fields = {**what, "after": after, **more}
        logger.warning("%s", " ".join(f"{name}={value}" for name, value in fields.items()))
        if self.log is None:
            return
        try:
            await self.log.record([record(Kind.ADMIN, **fields)], required=True)
        except AuditError:  # it may yet be written, behind others
            self.log.put([record(Kind.ADMIN, **what, after=None, refused="it was not recorded in time")])
            raise

    def _text(self, redaction: Redaction, token_ids: Sequence[int]) -> str:
        return redaction(self.decode(token_ids))


def _score(hit: Hit) -> Fields:
    return {**score_fields(hit.score), "mode": hit.mode.value}


def _log_hit(asked: Asked, hit: Hit, more: Fields) -> None:
    score = hit.score
    logger.info(
        "%s key=%s guard=%s skill=%s mode=%s stage=%s layers=%s position=%d score=%.6g tau=%s%s",
        asked.client_request or asked.request,
        asked.caller.name,
        score.guard,
        score.skill,
        hit.mode.value,
        score.stage.value,
        ",".join(map(str, score.layers)),
        score.position,
        score.score,
        score.tau,
        "".join(f" prompt_{name}={value}" for name, value in more.items()),
    )
