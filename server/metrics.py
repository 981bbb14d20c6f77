"""Prometheus metrics. Each app has its own registry, and no label ever holds text of a caller.

Counters and histograms are fed by the request path. What can be asked for (queue, readiness, guards) is asked for at
scrape time, by `server/collectors.py`.
"""

import math
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from guards.core.verdict import GuardKind, GuardMode, Stage
from server.engines.base import Event, Finish, GuardInfo

_RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Dense around 1, where a detector's decision lies: at or below 1 it fires."""

_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HIT_LABELS = ("skill", "method", "stage")


class Metrics:
    """The server's counters and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

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
        self._verified = counter("verified_requests", "Answers with a reading of every guard at every position.")
        self._unverified = counter(
            "unverified_requests", "Answers that lacked a reading. Must stay at zero: a guard does not work."
        )
        self._acted = counter(
            "intervention_acted", "What interventions did to answers, each in its own unit.", ("guard", "unit")
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens in.")
        self._completion_tokens = counter("completion_tokens", "Tokens out, of withheld answers too.")
        self._ratio = histogram(
            "score_over_tau",
            "Score over threshold at the last prompt token, 0 where that is negative.",
            _RATIO_BUCKETS,
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

    def know(self, guards: Iterable[GuardInfo]) -> None:
        """Every labelled series of these guards is there from now on, with 0: a rate misses an event that makes one.

        An intervention never hits.
        """
        for guard in guards:
            if guard.kind is GuardKind.INTERVENTION:
                if guard.unit is not None:
                    self._acted.labels(guard.name, guard.unit)
                continue
            for stage in Stage:
                self._abstentions.labels(guard.skill, guard.method, stage.value)
                self._shadow_hits.labels(guard.skill, guard.method, stage.value)
            for mode in GuardMode:
                self._prompt_hits.labels(guard.skill, guard.method, mode.value)
            self._ratio.labels(guard.name)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A finished HTTP request. `route` is a template; a method nobody defined counts as "other"."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def answer_observer(self, started: float, clock: Callable[[], float] = time.monotonic) -> Callable[[Event], None]:
        """An observer of one answer's events; `started` is when its HTTP request arrived, by the same clock."""
        first_token_at: float | None = None

        def observe(event: Event) -> None:
            nonlocal first_token_at
            if isinstance(event, Finish):
                self._observe_finish(event)
                if first_token_at is not None and event.completion_tokens > 1:
                    self._per_token.observe((clock() - first_token_at) / (event.completion_tokens - 1))
            elif first_token_at is None and event.tokens:
                first_token_at = clock()
                self._first_token.observe(first_token_at - started)

        return observe

    def _observe_finish(self, finish: Finish) -> None:
        (self._verified if finish.verified else self._unverified).inc()
        self._prompt_tokens.inc(finish.prompt_tokens)
        self._completion_tokens.inc(finish.completion_tokens)
        for acted in finish.acted:
            self._acted.labels(acted.guard, acted.unit).inc(acted.amount)
        for hit in finish.hits:
            if hit.mode is GuardMode.SHADOW:
                labels = (hit.score.skill, hit.score.method, hit.score.stage.value)
                self._shadow_hits.labels(*labels).inc()
        for hits in finish.prompt_hits:
            score = hits.first.score
            self._prompt_hits.labels(score.skill, score.method, hits.first.mode.value).inc()
        if (ended_by := finish.abstained_on) is not None:
            labels = (ended_by.score.skill, ended_by.score.method, ended_by.score.stage.value)
            self._abstentions.labels(*labels).inc()
        for score in finish.prompt_scores:
            if score.tau and math.isfinite(score.score):  # one NaN would spoil the sum for good
                # A message's mean may be negative. A sum that falls looks to Prometheus like a counter that was reset.
                self._ratio.labels(score.guard).observe(max(0.0, score.score / score.tau))
