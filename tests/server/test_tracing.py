"""Spans: their parent, what they say, where they go, and when there are none."""

import gzip
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from guards.core.verdict import GuardMode, Stage
from server import app as app_module
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.errors import ConfigError
from server.tracing import OtelTracer, Untraced, make_tracer
from tests.server.harness import CHAT, chat, serving

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


def scripts() -> list[Script]:
    other = replace(hit(guard("other", "baking"), mode=GuardMode.SHADOW))
    late = abstention(hit(guard(), Stage.GENERATION), "a")
    finish = replace(late[-1], hits=(hit(guard(), Stage.GENERATION), other))  # type: ignore[arg-type]
    return [Script((*late[:-1], finish), when=lambda prompt: "cook" in prompt), Script(answer("fine"))]


@pytest.fixture
def spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the app traces; events of guards are in it where the test asks for them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(app_module, "make_tracer", lambda **options: OtelTracer(provider, **options))
    return exporter


async def test_a_span_has_its_callers_parent_and_says_what_came_of_it(spans: InMemorySpanExporter) -> None:
    async with serving(ScriptedEngine(scripts()), trace_guards=True) as served:
        await served.client.post(CHAT, json=chat("cook my_secret"), headers={"traceparent": PARENT})
        await served.client.post(CHAT, json=chat("hi"))
        await served.client.request("SECRET", CHAT)
        engine_tokens = len(served.engine.submitted[0].prompt_token_ids)
        version = served.engine.submitted[0].policy.version
    withheld, fine, wrong = spans.get_finished_spans()
    assert withheld.parent is not None
    assert f"{withheld.parent.trace_id:032x}-{withheld.parent.span_id:016x}" in PARENT
    assert withheld.name == f"POST {CHAT}"
    told: dict[str, Any] = dict(withheld.attributes or {})
    assert str(told.pop("skillguard.request.id")).startswith("req_")
    assert told == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.response.model": "scripted",
        "gen_ai.usage.input_tokens": engine_tokens,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("abstain",),
    }
    assert [dict(event.attributes or {}) for event in withheld.events] == [
        {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.score.label": label,
            "gen_ai.evaluation.score.value": 0.25,
            "skillguard.skill": skill,
            "skillguard.stage": stage,
            "skillguard.policy.version": version,
        }
        for name, label, skill, stage in (
            ("demo", "abstain", "cooking", "generation"),
            ("other", "shadow", "baking", "prompt"),
        )
    ]
    assert fine.parent is None
    assert fine.events == ()
    assert (wrong.attributes or {})["error.type"] == "method_not_allowed"
    assert wrong.name == f"_OTHER {CHAT}"
    everything = "".join(span.to_json() for span in (withheld, fine, wrong))
    assert "my_secret" not in everything
    assert "SECRET" not in everything


async def test_guards_are_no_events_unless_that_is_switched_on(spans: InMemorySpanExporter) -> None:
    async with serving(ScriptedEngine(scripts())) as served:
        await served.post(CHAT, chat("cook"))
    (span,) = spans.get_finished_spans()
    assert span.events == ()


async def test_an_error_of_ours_is_one_of_the_spans(spans: InMemorySpanExporter) -> None:
    async with serving(ScriptedEngine([Script(())])) as served:
        assert (await served.post(CHAT, chat())).status_code == 500
    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert (span.attributes or {})["error.type"] == "engine_error"


@pytest.mark.parametrize(
    "environment",
    [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}],
)
def test_nothing_is_traced_unless_the_environment_asks(environment: dict[str, str]) -> None:
    assert isinstance(make_tracer(guard_events=False, environment=environment), Untraced)


def test_what_cannot_be_had_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="wanted http/protobuf"):
        make_tracer(guard_events=False, environment={**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    with pytest.raises(ConfigError, match="trace_guards: got no OTEL_EXPORTER_OTLP_ENDPOINT"):
        make_tracer(guard_events=True, environment={})
    off = {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}
    assert isinstance(make_tracer(guard_events=True, environment=off), Untraced), "switched off on purpose"
    monkeypatch.setattr("server.tracing.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed"):
        make_tracer(guard_events=False, environment=ENDPOINT)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector's address, and what it got, by OTLP over HTTP."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


async def test_spans_go_where_the_usual_variables_say(
    collector: tuple[str, list[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    async with serving(ScriptedEngine(scripts())) as served:
        await served.post(CHAT, chat("hi"))
    (sent,) = got[0].resource_spans
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert resource["service.name"] == "skillguard"
    assert resource["deployment.environment"] == "test"
    assert [span.name for span in sent.scope_spans[0].spans] == [f"POST {CHAT}"]
