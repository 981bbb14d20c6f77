"""What Prometheus reads."""

from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guards.core.verdict import GuardKind, GuardMode, Reading
from server.engines.base import Acted, Chunk, Finish, FinishReason, Load, TemplateState
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit, score
from server.metrics import Metrics
from tests.server.harness import CHAT, chat, completion, serving

pytestmark = pytest.mark.anyio


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"skillguard_{name}", labels)


async def test_answers_are_counted() -> None:
    of = guard()
    scripts = [
        Script(abstention(hit(of)), when=lambda prompt: "cook" in prompt),
        Script(answer("a", "b", hits=(hit(of, mode=GuardMode.SHADOW),)), when=lambda prompt: "watch" in prompt),
        Script((Finish(FinishReason.ERROR, 0, 0, verified=False),), when=lambda prompt: "break" in prompt),
        Script(answer("a")),
    ]
    async with serving(ScriptedEngine(scripts)) as served:
        for content in ("cook", "cook", "watch", "break", "hi"):
            await served.post(CHAT, chat(content))
        labels = '{method="ksd",skill="cooking",stage="prompt"}'
        assert await served.metric(f"skillguard_abstentions_total{labels}") == 2
        assert await served.metric(f"skillguard_shadow_hits_total{labels}") == 1
        assert await served.metric("skillguard_verified_requests_total") == 4
        assert await served.metric("skillguard_unverified_requests_total") == 1
        assert await served.metric("skillguard_completion_tokens_total") == 5
        assert await served.metric("skillguard_prompt_tokens_total") == sum(
            len(request.prompt_token_ids) for request in served.engine.submitted
        )


async def test_every_series_of_a_guard_is_there_before_its_first_event() -> None:
    """A series that begins with an event hides it: `increase()` needs the 0 before."""
    moved = replace(guard("na-facts", skill="facts", kind=GuardKind.INTERVENTION), unit="neurons")
    of = guard()
    engine = ScriptedEngine([Script(abstention(hit(of)))], guards=(of, moved))
    async with serving(engine) as served:
        before = (await served.client.get("/metrics")).text
        names = ("abstentions_total", "shadow_hits_total", "prompt_logprob_hits_total", "intervention_acted_total")
        zeros = [line for line in before.splitlines() if line.startswith(tuple(f"skillguard_{name}" for name in names))]
        assert all(line.endswith(" 0.0") for line in zeros)
        for line in (
            'skillguard_abstentions_total{method="ksd",skill="cooking",stage="prompt"} 0.0',
            'skillguard_abstentions_total{method="ksd",skill="cooking",stage="generation"} 0.0',
            'skillguard_shadow_hits_total{method="ksd",skill="cooking",stage="generation"} 0.0',
            'skillguard_prompt_logprob_hits_total{method="ksd",mode="shadow",skill="cooking"} 0.0',
            'skillguard_intervention_acted_total{guard="na-facts",unit="neurons"} 0.0',
            'skillguard_score_over_tau_count{guard="demo"} 0.0',
        ):
            assert line in before.splitlines()
        assert 'skill="facts"' not in "\n".join(zeros), "an intervention never hits"
        await served.post(CHAT, chat())
        after = (await served.client.get("/metrics")).text
        assert 'skillguard_abstentions_total{method="ksd",skill="cooking",stage="prompt"} 1.0' in after.splitlines()


async def test_requests_are_counted_by_template() -> None:
    async with serving() as served:
        await served.post(CHAT, chat())
        await served.client.get("/v1/models/scripted")
        await served.client.get("/v1/models/secret")
        await served.client.get("/secret")
        await served.client.request("SECRET", CHAT)
        text = (await served.client.get("/metrics")).text
        assert "secret" not in text.lower()
        for route, method, status in (
            (CHAT, "POST", 200),
            ("/v1/models/{model_id:path}", "GET", 200),
            ("/v1/models/{model_id:path}", "GET", 404),
            ("other", "GET", 404),
            (CHAT, "other", 405),
        ):
            assert f'skillguard_requests_total{{method="{method}",route="{route}",status="{status}"}} 1.0' in text


async def test_unverified_counter_exists_from_the_start() -> None:
    """An alert on a counter that does not exist never fires."""
    async with serving() as served:
        text = (await served.client.get("/metrics")).text
        assert "skillguard_unverified_requests_total 0.0" in text


async def test_state_is_read_at_the_scrape() -> None:
    engine = ScriptedEngine(guards=(replace(guard("a"), template=TemplateState.ACCEPTED), guard("b")))
    engine.verification = {"a": None, "b": "no"}
    engine.queue = Load(running=3, waiting=2)
    async with serving(engine, shadow=("b",)) as served:
        assert await served.metric("skillguard_ready") == 0
        assert await served.metric("skillguard_requests_running") == 3
        assert await served.metric("skillguard_requests_waiting") == 2
        engine.queue = Load(running=1, waiting=0)
        assert await served.metric("skillguard_requests_running") == 1
        assert await served.metric('skillguard_guard_verified{guard="a"}') == 1
        assert await served.metric('skillguard_guard_verified{guard="b"}') == 0
        assert await served.metric('skillguard_guard_template_accepted{guard="a"}') == 1
        assert await served.metric('skillguard_guard_template_accepted{guard="b"}') == 0
        text = (await served.client.get("/metrics")).text
        assert 'guard="b",kind="detector",method="ksd",mode="shadow",scope="both",skill="cooking"' in text
        assert 'skillguard_engine_info{architecture="none"' in text
        assert "skillguard_build_info{version=" in text


async def test_metrics_before_the_engine_runs() -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    async with serving(engine, settled=False) as served:
        assert await served.metric("skillguard_ready") == 0
        assert "skillguard_requests_running" not in (await served.client.get("/metrics")).text


async def test_exposition_is_well_formed() -> None:
    async with serving() as served:
        await served.post("/v1/completions", completion())
        response = await served.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        parse = cast(Any, text_string_to_metric_families)
        names = [family.name for family in parse(response.text)]
        assert len(names) == len(set(names))
        assert all(name.startswith("skillguard_") for name in names)


def test_times_between_tokens() -> None:
    now = 10.0
    metrics = Metrics()
    observe = metrics.answer_observer(started=9.0, clock=lambda: now)
    observe(Chunk("", tokens=0))
    now = 11.0
    observe(Chunk("a", tokens=1))
    now = 12.0
    observe(Chunk("b", tokens=1))
    now = 17.0
    observe(Finish(FinishReason.STOP, 1, completion_tokens=4, verified=True))
    assert sample(metrics, "time_to_first_token_seconds_sum") == 2.0  # from 9 to 11
    assert sample(metrics, "time_per_output_token_seconds_sum") == 2.0  # from 11 to 17 in three steps
    assert sample(metrics, "time_per_output_token_seconds_count") == 1


def test_scores_and_what_interventions_did() -> None:
    metrics = Metrics()
    shifts = replace(score(guard("n", kind=GuardKind.INTERVENTION)), tau=None, score=40.0)
    broken = replace(score(guard("x"), Reading.INVALID), score=float("nan"))
    scores = (score(guard("a")), score(guard("b"), Reading.INSIDE), shifts, broken)
    acted = (Acted("n", "neurons", 40.0), Acted("m", "degrees", 1.5))
    observe = metrics.answer_observer(started=0.0)
    observe(Finish(FinishReason.STOP, 1, 1, verified=True, prompt_scores=scores, acted=acted))
    assert sample(metrics, "score_over_tau_sum", guard="a") == 2.0
    assert sample(metrics, "score_over_tau_bucket", guard="b", le="0.5") == 1.0
    assert sample(metrics, "score_over_tau_count", guard="n") is None
    assert sample(metrics, "score_over_tau_count", guard="x") is None
    observe(Finish(FinishReason.STOP, 1, 1, verified=True, acted=acted[:1]))
    assert sample(metrics, "intervention_acted_total", guard="n", unit="neurons") == 80.0
    assert sample(metrics, "intervention_acted_total", guard="m", unit="degrees") == 1.5


def test_a_histogram_never_observes_less_than_nothing() -> None:
    """A sum that falls looks to Prometheus like a counter that was reset."""
    metrics, sums = Metrics(), []
    for value in (0.25, -1.0, 0.5):
        scores = (replace(score(guard("a")), score=value),)
        metrics.answer_observer(started=0.0)(Finish(FinishReason.STOP, 1, 1, verified=True, prompt_scores=scores))
        sums.append(sample(metrics, "score_over_tau_sum", guard="a"))
    assert sums == [0.5, 0.5, 1.5]
    assert sample(metrics, "score_over_tau_count", guard="a") == 3
    assert sample(metrics, "score_over_tau_bucket", guard="a", le="0.25") == 1
