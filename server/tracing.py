"""OpenTelemetry: a span for each HTTP request, and what guards did as its events, where the environment asks for it.

The usual variables decide where spans go (`OTEL_EXPORTER_OTLP_ENDPOINT` and the like, over HTTP). A caller's
`traceparent` is the span's parent. No attribute holds a caller's text.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from server.engines.events import Finish, Hit
from server.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"

METHOD, ROUTE, STATUS, ERROR = "http.request.method", "http.route", "http.response.status_code", "error.type"
REQUEST_ID = "skillguard.request.id"
MODEL, TOKENS_IN, TOKENS_OUT = "gen_ai.response.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
REASONS = "gen_ai.response.finish_reasons"
EVENT, EVENT_NAME = "gen_ai.evaluation.result", "gen_ai.evaluation.name"
EVENT_LABEL, EVENT_SCORE = "gen_ai.evaluation.score.label", "gen_ai.evaluation.score.value"
EVENT_SKILL, EVENT_STAGE, EVENT_POLICY = "skillguard.skill", "skillguard.stage", "skillguard.policy.version"
"""From OpenTelemetry's conventions for HTTP and, in development, for generative models, which have no guardrails yet
(open-telemetry/semantic-conventions-genai, pull request 427): the one table of names. What they lack is `skillguard.`
"""


class Trace(Protocol):
    """One request's span."""

    def answered(self, finish: Finish, model: str, policy_version: str) -> None:
        """One of its answers ended."""
        ...

    def end(self, status: int, error: str | None) -> None:
        """The request did; `error` is the code that its caller was told."""
        ...


class Tracer(Protocol):
    """Begins spans."""

    def begin(self, request_id: str, method: str, route: str, headers: Mapping[str, str]) -> Trace: ...

    def shutdown(self) -> None:
        """Sends what is left. Blocks."""
        ...


class Untraced:
    """Both, where nobody asked for traces."""

    def begin(self, request_id: str, method: str, route: str, headers: Mapping[str, str]) -> Trace:
        return self

    def shutdown(self) -> None: ...

    def answered(self, finish: Finish, model: str, policy_version: str) -> None: ...

    def end(self, status: int, error: str | None) -> None: ...


def make_tracer(*, guard_events: bool, environment: Mapping[str, str] = os.environ) -> Tracer:
    """What the environment asks for. Raises ConfigError where it cannot be had: traces that nobody gets look calm."""
    wanted = any(environment.get(name) for name in _ENDPOINTS)
    if guard_events and not wanted:
        raise ConfigError(
            "trace_guards: got no OTEL_EXPORTER_OTLP_ENDPOINT, so there is no span that events could stand in; set the "
            "variable, or leave trace_guards out"
        )
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not wanted or disabled or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return Untraced()
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _HTTP)
    if protocol != _HTTP:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: got {protocol}, wanted {_HTTP}, the one that is spoken here")
    if find_spec("opentelemetry") is None or not _has_exporter():
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is not installed; pip install 'skillguard[tracing]', or unset "
            "the variable"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_NAME: "skillguard", **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider, guard_events=guard_events)


def _has_exporter() -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    return False


class OtelTracer:
    """Spans by OpenTelemetry's SDK."""

    def __init__(self, provider: "TracerProvider", *, guard_events: bool) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("skillguard")
        self._propagator = TraceContextTextMapPropagator()
        self._guard_events = guard_events

    def begin(self, request_id: str, method: str, route: str, headers: Mapping[str, str]) -> Trace:
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(
                {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
            ),
            SpanKind.SERVER,
            {METHOD: method, ROUTE: route, REQUEST_ID: request_id},
        )
        return _OtelTrace(span, self._guard_events)

    def shutdown(self) -> None:
        self._provider.shutdown()


class _OtelTrace:
    def __init__(self, span: Any, guard_events: bool) -> None:
        self._span = span
        self._guard_events = guard_events
        self._tokens_in = self._tokens_out = 0
        self._reasons: list[str] = []

    def answered(self, finish: Finish, model: str, policy_version: str) -> None:
        self._tokens_in += finish.prompt_tokens
        self._tokens_out += finish.completion_tokens
        self._reasons.append(finish.reason.value)
        self._span.set_attributes(
            {MODEL: model, TOKENS_IN: self._tokens_in, TOKENS_OUT: self._tokens_out, REASONS: self._reasons}
        )
        if self._guard_events:
            for hit in finish.hits:
                self._span.add_event(EVENT, _event(hit, policy_version, ended=hit is finish.abstained_on))

    def end(self, status: int, error: str | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute(STATUS, status)
        if error is not None:
            self._span.set_attribute(ERROR, error)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _event(hit: Hit, policy_version: str, *, ended: bool) -> dict[str, str | float]:
    return {
        EVENT_NAME: hit.score.guard,
        EVENT_LABEL: "abstain" if ended else hit.mode.value,
        EVENT_SCORE: hit.score.score,
        EVENT_SKILL: hit.score.skill,
        EVENT_STAGE: hit.score.stage.value,
        EVENT_POLICY: policy_version,
    }
