"""What Prometheus reads."""

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guards.artifact.manifest import ScoreQuantiles
from guards.core.policy import Policy
from guards.core.quantiles import LEVELS
from guards.core.verdict import GuardKind, GuardMode, Reading, Scope, Stage
from server.auth import Role, new_key
from server.engines.base import GuardInfo, Load, TemplateState
from server.engines.events import Acted, Chunk, Finish, FinishReason, GuardFault, Hit
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit, score
from server.metrics import MOST_TENANTS, Metrics
from tests.programs import needed
from tests.server.harness import CHAT, chat, completion, keys_file, serving

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
    async with serving(engine, anonymous_role="operator") as served:
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


async def test_users_are_told_no_scores(tmp_path: Path) -> None:
    """One prompt between two scrapes: the histogram's sum is its score, which tells how far it is from passing."""
    pair = (guard(), judged())
    keys = {role: new_key(role.value, role) for role in Role}
    file = keys_file(tmp_path, *(entry for _, entry in keys.values()))
    bearer = {role: {"authorization": f"Bearer {key}"} for role, (key, _) in keys.items()}

    async def told(asks: dict[str, str], reads: dict[str, str], **settings: Any) -> str:
        read = Finish(
            FinishReason.STOP, 1, 1, verified=True, prompt_scores=tuple(at(each, 2).prompt_scores[0] for each in pair)
        )
        async with serving(ScriptedEngine([Script((Chunk("a", 1), read))], guards=pair), **settings) as served:
            await served.post(CHAT, chat(), **asks)
            text = (await served.client.get("/metrics", headers=reads)).text
        assert "skillguard_verified_requests_total 1.0" in text
        return text

    for text in (
        await told({}, {}, anonymous_role="operator"),
        await told(bearer[Role.USER], bearer[Role.OPERATOR], api_keys_file=file),
        await told(bearer[Role.USER], bearer[Role.METRICS], api_keys_file=file),
    ):
        assert 'skillguard_score_over_tau_sum{guard="demo"} 2.0' in text
        assert 'skillguard_score_quantile_count{guard="a"} 1.0' in text
    assert "skillguard_score" not in await told({}, {})


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


TABLE = ScoreQuantiles(examples=9999, over_tau=tuple(1 + level for level in LEVELS))
"""Of scores that are even between once and twice tau."""


def judged(name: str = "a", **changes: Any) -> GuardInfo:
    return replace(guard(name), parts=("prompt",), quantiles=TABLE, **changes)


def seen(metrics: Metrics, finish: Finish, **asked: Any) -> None:
    metrics.answer_observer(started=0.0, **asked)(finish)


def at(of: GuardInfo, over_tau: float) -> Finish:
    read = replace(score(of), score=over_tau * 0.5, part="prompt")
    return Finish(FinishReason.STOP, 1, 1, verified=True, prompt_scores=(read,))


def test_a_score_is_told_as_its_quantile() -> None:
    metrics = Metrics()
    metrics.know([judged()])
    assert sample(metrics, "score_quantile_count", guard="a") == 0
    assert sample(metrics, "score_over_tau_count", guard="a") is None, "one of the two is enough"
    seen(metrics, at(judged(), 1.25))
    assert sample(metrics, "score_quantile_sum", guard="a") == pytest.approx(0.25)
    assert sample(metrics, "score_quantile_bucket", guard="a", le="0.2") == 0
    assert sample(metrics, "score_quantile_bucket", guard="a", le="0.3") == 1


def test_a_quantile_is_that_of_the_artifacts_tau_whatever_tau_holds() -> None:
    metrics = Metrics()
    metrics.know([judged()])
    finish = at(judged(), 1.25)
    seen(metrics, replace(finish, prompt_scores=(replace(finish.prompt_scores[0], tau=0.1),)))
    assert sample(metrics, "score_quantile_sum", guard="a") == pytest.approx(0.25)


def test_outside_of_the_table_a_quantile_is_drawn() -> None:
    metrics = Metrics(draw=lambda low, high: (low + high) / 2)
    metrics.know([judged()])
    seen(metrics, at(judged(), 0.2))
    assert sample(metrics, "score_quantile_sum", guard="a") == pytest.approx(0.0005)
    seen(metrics, at(judged(), 9.0))
    assert sample(metrics, "score_quantile_sum", guard="a") == pytest.approx(0.0005 + 0.9995)


def test_verdicts_by_guard_mode_and_stage() -> None:
    metrics = Metrics()
    a, b, c = judged("a"), judged("b"), judged("c", rule=replace(guard().rule, scope=Scope.GENERATION))
    metrics.know([a, b, c])
    rules = {each.name: each.rule for each in (a, b, c)}
    policy = Policy({**rules, "b": replace(b.rule, mode=GuardMode.SHADOW)})

    def count(name: str, mode: str, stage: str, verdict: str) -> float | None:
        return sample(metrics, "verdicts_total", guard=name, mode=mode, stage=stage, verdict=verdict)

    scores = tuple(replace(score(each), part="prompt") for each in (a, b, c))
    late = hit(a, Stage.GENERATION)
    watched = Hit(score(b, Reading.INSIDE), GuardMode.SHADOW)
    seen(
        metrics,
        Finish(FinishReason.ABSTAIN, 4, 3, verified=True, hits=(watched, late), prompt_scores=scores),
        policy=policy,
    )
    assert count("a", "enforce", "prompt", "allow") == 1
    assert count("a", "enforce", "generation", "abstain") == 1
    assert count("b", "shadow", "prompt", "shadow") == 1
    assert count("b", "shadow", "generation", "allow") == 1
    assert count("c", "enforce", "prompt", "allow") == 0, "outside of its scope"
    assert count("c", "enforce", "generation", "allow") == 1
    fault = GuardFault("c", Reading.MISSING, 3, Stage.PROMPT, "0" * 64)
    broken = Finish(FinishReason.ERROR, 4, 0, verified=False, prompt_scores=scores[:2], faults=(fault,))
    seen(metrics, broken, policy=policy)
    assert count("c", "enforce", "prompt", "error") == 1
    assert count("a", "enforce", "prompt", "allow") == 2
    assert sample(metrics, "guard_errors_total", guard="c", kind="missing") == 1
    assert sample(metrics, "guard_errors_total", guard="c", kind="invalid") == 0
    assert sample(metrics, "prompt_tokens_unseen_total") == 4
    assert count("a", "enforce", "generation", "allow") == 0, "nothing was drawn"


def test_where_a_guard_fired_and_what_was_out_by_then() -> None:
    metrics = Metrics()
    metrics.know([judged()])
    late = replace(hit(judged(), Stage.GENERATION), score=replace(score(judged()), position=29, stage=Stage.GENERATION))
    finish = Finish(FinishReason.ABSTAIN, 20, 11, verified=True, hits=(late,))
    for lag, sent in ((0, 10), (4, 16), (None, 16), (64, 16)):
        seen(metrics, finish, hold_back_tokens=lag)
        assert sample(metrics, "sent_before_abstention_tokens_sum", guard="a") == sent
    assert sample(metrics, "hit_position_tokens_sum", guard="a", stage="generation") == 4 * 29


def test_tenants_are_bounded() -> None:
    metrics = Metrics()
    metrics.know([judged()])
    metrics.know_tenants(["alice", *(f"key-{index}" for index in range(2 * MOST_TENANTS))])
    answers = [each for each in metrics.registry.collect() if each.name == "skillguard_tenant_answers"]
    tenants = {each.labels["tenant"] for each in answers[0].samples}
    assert len(tenants) == MOST_TENANTS + 1
    assert {"alice", "other"} < tenants
    withheld = Finish(FinishReason.ABSTAIN, 1, 1, verified=True, hits=(hit(judged()),))
    for tenant in ("alice", "mallory", "mallory"):
        seen(metrics, withheld, tenant=tenant)
    assert sample(metrics, "tenant_answers_total", tenant="alice", outcome="abstained") == 1
    assert sample(metrics, "tenant_answers_total", tenant="other", outcome="abstained") == 2
    assert sample(metrics, "tenant_answers_total", tenant="mallory", outcome="abstained") is None
    assert sample(metrics, "tenant_abstentions_total", tenant="alice", skill="cooking", stage="prompt") == 1
    assert sample(metrics, "tenant_abstentions_total", tenant="alice", skill="cooking", stage="generation") == 0


async def test_a_request_is_counted_for_its_caller_under_its_policy() -> None:
    engine = ScriptedEngine([Script(abstention(hit(guard())))])
    async with serving(engine) as served:
        await served.post(CHAT, chat())
        answers = "skillguard_tenant_answers_total"
        assert await served.metric(f'{answers}{{outcome="abstained",tenant="anonymous"}}') == 1
        assert await served.metric(f'{answers}{{outcome="abstained",tenant="other"}}') == 0
        labels = 'guard="demo",mode="enforce",stage="prompt",verdict="abstain"'
        assert await served.metric(f"skillguard_verdicts_total{{{labels}}}") == 1
        text = (await served.client.get("/metrics")).text
        assert 'skillguard_artifact_info{guard="demo",method="ksd",quantiles="unknown",sha256="000' in text
        assert 'skillguard_policy_info{version="' in text


async def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    """Every series that a server can have: guards of all kinds, an audit log, and an answer of each outcome."""
    promtool = needed("promtool", "prometheus")
    moved = replace(guard("na-facts", skill="facts", kind=GuardKind.INTERVENTION), unit="neurons")
    engine = ScriptedEngine([Script(abstention(hit(guard())))], guards=(guard(), judged(), moved))
    async with serving(engine, audit_dir=tmp_path, anonymous_role="operator") as served:
        await served.post(CHAT, chat())
        text = (await served.client.get("/metrics")).text
    assert "skillguard_score" in text

    def check(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)

    done = await asyncio.to_thread(check, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    odd = "# HELP skillguard_odd Odd.\n# TYPE skillguard_odd counter\nskillguard_odd 1\n"
    assert (await asyncio.to_thread(check, odd)).returncode != 0, "the positive control"
