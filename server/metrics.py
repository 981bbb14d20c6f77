"""Prometheus metrics. Each app has its own registry, and no label ever holds text of a caller.

Counters and histograms are fed by the request path. What can be asked for (queue, readiness, guards) is asked for at
scrape time, by `server/collectors.py`.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from guards.core.policy import Policy
from guards.core.verdict import GuardKind, GuardMode, Reading, Stage, Verdict
from server.engines.base import GuardInfo
from server.engines.events import Event, Finish, FinishReason, GuardScore

_RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Dense around 1, where a detector's decision lies: at or below 1 it fires."""

QUANTILE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Even, to show drift, and dense below, where detectors fire and `skillguard propose-tau` looks."""

_TOKEN_BUCKETS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HIT_LABELS = ("skill", "method", "stage")
_FAULTS = (Reading.MISSING, Reading.INVALID)
_VERDICTS = {
    GuardMode.ENFORCE: (Verdict.ALLOW, Verdict.ABSTAIN, Verdict.ERROR),
    GuardMode.SHADOW: (Verdict.ALLOW, Verdict.SHADOW, Verdict.ERROR),
}
OTHER = "other"
"""The tenant of callers beyond MOST_TENANTS."""
MOST_TENANTS = 200
_SCORES = ("skillguard_score_quantile", "skillguard_score_over_tau")
"""Whose sum tells the score of whatever was asked between two scrapes."""

_OUTCOMES = {FinishReason.ABSTAIN: "abstained", FinishReason.ERROR: "error", FinishReason.GIVEN_UP: "given_up"}
_ANSWERED = "answered"
CHANGES = ("mode", "taus", "artifact")
_MADE, _REFUSED = "made", "refused"


class Metrics:
    """The server's counters and histograms."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        """`draw` gives a number between two, where a score's quantile is only known to lie there."""
        self.registry = CollectorRegistry()
        self._draw = draw
        self._guards: dict[str, GuardInfo] = {}
        self._tenants: set[str] = set()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"skillguard_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"skillguard_{name}", text, labels, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "HTTP requests.", ("route", "method", "status"))
        self._abstentions = counter("abstentions", "Answers withheld by an enforced guard.", _HIT_LABELS)
        self._shadow_hits = counter("shadow_hits", "Hits of guards in shadow mode.", _HIT_LABELS)
        self._prompt_hits = counter(
            "prompt_logprob_hits",
            "Prompts with hits inside, where log-probabilities were asked for; they are withheld where enforced.",
            ("skill", "method", "mode"),
        )
        self._verdicts = counter(
            "verdicts",
            "What each detector made of each prompt, and of each answer that was read on.",
            ("guard", "mode", "stage", "verdict"),
        )
        self._verified = counter("verified_requests", "Answers with a reading of every guard at every position.")
        self._unverified = counter(
            "unverified_requests", "Answers that lacked a reading. Must stay at zero: a guard does not work."
        )
        self._unseen = counter(
            "prompt_tokens_unseen",
            "Tokens of prompts at whose end a detector gave no reading. Must stay at zero.",
        )
        self._faults = counter("guard_errors", "Answers that a guard gave no valid reading of.", ("guard", "kind"))
        self._tenant_answers = counter("tenant_answers", "Answers, by whose they are.", ("tenant", "outcome"))
        self._tenant_abstentions = counter(
            "tenant_abstentions", "Answers withheld, by whose they are.", ("tenant", "skill", "stage")
        )
        self._acted = counter(
            "intervention_acted", "What interventions did to answers, each in its own unit.", ("guard", "unit")
        )
        self._changes = counter(
            "guard_changes", "What admins asked to change of guards while the server ran.", ("guard", "what", "outcome")
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens in.")
        self._completion_tokens = counter("completion_tokens", "Tokens out, of withheld answers too.")
        self._quantile = histogram(
            "score_quantile",
            "How common a prompt's score is among texts without the skill: uniform while traffic is as at calibration.",
            QUANTILE_BUCKETS,
            ("guard",),
        )
        self._ratio = histogram(
            "score_over_tau",
            "Score over threshold at the last prompt token, 0 where that is negative; of guards without quantiles.",
            _RATIO_BUCKETS,
            ("guard",),
        )
        self._position = histogram(
            "hit_position_tokens", "Tokens before the one at which a guard fired.", _TOKEN_BUCKETS, ("guard", "stage")
        )
        self._sent = histogram(
            "sent_before_abstention_tokens",
            "Tokens of an answer that a stream may have sent before a guard ended it; 0 of answers sent whole.",
            _TOKEN_BUCKETS,
            ("guard",),
        )
        self._duration = histogram(
            "request_duration_seconds", "From the first byte in to the last byte out.", _SECONDS_BUCKETS, ("route",)
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", _SECONDS_BUCKETS
        )
        self._per_token = histogram(
            "time_per_output_token_seconds", "Mean time between tokens of one answer.", _TOKEN_SECONDS_BUCKETS
        )

    def text(self, *, scores: bool) -> bytes:
        """All series in Prometheus' format, those of scores only if they may be told."""
        return generate_latest(self.registry if scores else _WithoutScores(self.registry))

    def text_of(self, tenant: str) -> bytes:
        """One tenant's own series: any other counts for all of them, so that the rest of it would be the others'."""
        return generate_latest(_OfTenant(tenant, (self._tenant_answers, self._tenant_abstentions)))

    def know(self, guards: Iterable[GuardInfo]) -> None:
        """Every labelled series of these guards is there from now on, with 0: a rate misses an event that makes one.

        An intervention never hits.
        """
        self._guards = {guard.name: guard for guard in guards}
        for guard in self._guards.values():
            for what in CHANGES:
                for outcome in (_MADE, _REFUSED):
                    self._changes.labels(guard.name, what, outcome)
            for reading in _FAULTS:
                self._faults.labels(guard.name, reading.name.lower())
            if guard.kind is GuardKind.INTERVENTION:
                if guard.unit is not None:
                    self._acted.labels(guard.name, guard.unit)
                continue
            for stage in Stage:
                self._abstentions.labels(guard.skill, guard.method, stage.value)
                self._shadow_hits.labels(guard.skill, guard.method, stage.value)
                self._position.labels(guard.name, stage.value)
                for mode, verdicts in _VERDICTS.items():
                    for verdict in verdicts:
                        self._verdicts.labels(guard.name, mode.value, stage.value, verdict.value)
            for mode in _VERDICTS:
                self._prompt_hits.labels(guard.skill, guard.method, mode.value)
            self._sent.labels(guard.name)
            (self._ratio if guard.quantiles is None else self._quantile).labels(guard.name)
        self._begin_tenants()

    def know_tenants(self, names: Iterable[str]) -> None:
        """These callers have series of their own, up to MOST_TENANTS; all others are one."""
        self._tenants |= set(sorted({*names} - self._tenants)[: MOST_TENANTS - len(self._tenants)])
        self._begin_tenants()

    def _begin_tenants(self) -> None:
        for tenant in (*self._tenants, OTHER):
            for outcome in (_ANSWERED, *_OUTCOMES.values()):
                self._tenant_answers.labels(tenant, outcome)
            for guard in self._guards.values():
                if guard.kind is GuardKind.DETECTOR:
                    for stage in Stage:
                        self._tenant_abstentions.labels(tenant, guard.skill, stage.value)

    def observe_change(self, guard: str, what: str, *, made: bool) -> None:
        """What an admin asked to change of a guard that is there: one of CHANGES."""
        self._changes.labels(guard, what, _MADE if made else _REFUSED).inc()

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A finished HTTP request. `route` is a template; a method nobody defined counts as "other"."""
        self._requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def answer_observer(
        self,
        started: float,
        *,
        tenant: str = OTHER,
        policy: Policy = Policy(),  # noqa: B008  frozen
        hold_back_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Callable[[Event], None]:
        """An observer of one answer's events; `started` is when its HTTP request arrived, by the same clock.

        `hold_back_tokens` as `Finish.sent_before` has it.
        """
        first_token_at: float | None = None

        def observe(event: Event) -> None:
            nonlocal first_token_at
            if isinstance(event, Finish):
                self._observe_finish(event, policy)
                self._observe_tenant(event, tenant, hold_back_tokens)
                if first_token_at is not None and event.completion_tokens > 1:
                    self._per_token.observe((clock() - first_token_at) / (event.completion_tokens - 1))
            elif first_token_at is None and event.tokens:
                first_token_at = clock()
                self._first_token.observe(first_token_at - started)

        return observe

    def _observe_finish(self, finish: Finish, policy: Policy) -> None:
        if not finish.verified:
            self._unverified.inc()
        elif finish.reason is not FinishReason.GIVEN_UP:
            self._verified.inc()
        self._prompt_tokens.inc(finish.prompt_tokens)
        self._completion_tokens.inc(finish.completion_tokens)
        for acted in finish.acted:
            self._acted.labels(acted.guard, acted.unit).inc(acted.amount)
        for hit in finish.hits:
            score = hit.score
            self._position.labels(score.guard, score.stage.value).observe(score.position)
            if hit.mode is GuardMode.SHADOW:
                self._shadow_hits.labels(score.skill, score.method, score.stage.value).inc()
        for hits in finish.prompt_hits:
            score = hits.first.score
            self._prompt_hits.labels(score.skill, score.method, hits.first.mode.value).inc()
        for fault in finish.faults:
            self._faults.labels(fault.guard, fault.reading.name.lower()).inc()
        if any(fault.stage is Stage.PROMPT for fault in finish.faults):
            self._unseen.inc(finish.prompt_tokens)
        for guard in self._guards.values():
            if guard.kind is GuardKind.DETECTOR:
                rule = policy.rules.get(guard.name, guard.rule)
                known = _VERDICTS.get(rule.mode, ())
                for stage, verdict in _verdicts(finish, guard.name):
                    if verdict in known and (stage.within(rule.scope) or verdict is Verdict.ERROR):
                        self._verdicts.labels(guard.name, rule.mode.value, stage.value, verdict.value).inc()
        for score in finish.prompt_scores:
            if score.tau and math.isfinite(score.score):  # one NaN would spoil the sum for good
                self._observe_score(score)

    def _observe_score(self, score: GuardScore) -> None:
        guard = self._guards.get(score.guard)
        if guard is None or (between := guard.place_of(score)) is None:
            assert score.tau, "a detector's"
            # A message's mean may be negative. A sum that falls looks to Prometheus like a counter that was reset.
            self._ratio.labels(score.guard).observe(max(0.0, score.score / score.tau))
            return
        low, high = between
        self._quantile.labels(score.guard).observe(low if low == high else self._draw(low, high))

    def _observe_tenant(self, finish: Finish, tenant: str, hold_back_tokens: int | None) -> None:
        tenant = tenant if tenant in self._tenants else OTHER
        outcome = _OUTCOMES.get(finish.reason, _ANSWERED if finish.verified else "error")
        self._tenant_answers.labels(tenant, outcome).inc()
        if (ended_by := finish.abstained_on) is not None:
            score = ended_by.score
            self._abstentions.labels(score.skill, score.method, score.stage.value).inc()
            self._tenant_abstentions.labels(tenant, score.skill, score.stage.value).inc()
            self._sent.labels(score.guard).observe(finish.sent_before(ended_by, hold_back_tokens))


class _WithoutScores(CollectorRegistry):
    def __init__(self, registry: Collector) -> None:
        super().__init__()
        self._all = registry

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._all.collect() if metric.name not in _SCORES)


class _OfTenant(CollectorRegistry):
    def __init__(self, tenant: str, counters: Iterable[Counter]) -> None:
        super().__init__()
        self._tenant, self._counters = tenant, counters

    def collect(self) -> Iterator[Metric]:
        for metric in (each for counter in self._counters for each in counter.collect()):
            own = Metric(metric.name, metric.documentation, metric.type)
            own.samples = [
                each for each in metric.samples if each.labels["tenant"] == self._tenant and self._tenant != OTHER
            ]
            yield own


def _verdicts(finish: Finish, guard: str) -> Iterator[tuple[Stage, Verdict]]:
    """What a detector made of each stage that it was read in."""
    fault = next((each for each in finish.faults if each.guard == guard), None)
    hit = next((each for each in finish.hits if each.score.guard == guard), None)
    read = {
        Stage.PROMPT: any(score.guard == guard for score in finish.prompt_scores),
        # The first token is drawn on what was read of the prompt.
        Stage.GENERATION: finish.completion_tokens > 1,
    }
    for stage in Stage:
        if fault is not None and fault.stage is stage:
            yield stage, Verdict.ERROR
            return
        if hit is not None and hit.score.stage is stage:
            yield stage, Verdict.SHADOW if hit.mode is GuardMode.SHADOW else Verdict.ABSTAIN
            if hit.mode is GuardMode.ENFORCE:
                return
        elif read[stage]:
            yield stage, Verdict.ALLOW
