"""Another artifact takes a guard's place on the embedded engine, while 64 callers ask."""

import gc
import shutil
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from guards.artifact.pins import ArtifactPath
from guards.artifact.signatures import read_private, write_key_pair
from guards.artifact.store import read_artifact, sign_artifact
from guards.errors import ArtifactError, UntrustedArtifactError
from guards.inside.transformers.attach import _Site
from guards.inside.vllm.exchange import pairs, swap
from guards.methods.loaded import LoadedGuard
from guards.model.shard import WHOLE
from server import live
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from server.heap import settle
from tests.server.engines import exchanged
from tests.server.engines.exchanged import (
    CALLERS,
    FIFTIES,
    NAME,
    PROMPTS,
    ROUNDS,
    TENS,
    Served,
    lie,
    prompt,
    require_attributed,
    serving,
    swap_under_load,
)

pytestmark = pytest.mark.anyio
EXACT = 1e-3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return exchanged.write_served(tmp_path_factory.mktemp("exchanged"))


def engine_of(served: Served, folder: Path) -> EmbeddedEngine:
    return EmbeddedEngine(EmbeddedOptions(model=str(served.model), artifacts=(folder,), max_running=48))


async def fresh(served: Served) -> Mapping[str, dict[Any, float]]:
    """By digest, what each guard reads of every prompt where it was never anything else."""
    return {
        digest: await exchanged.fresh_scores(engine_of(served, folder), PROMPTS)
        for folder, digest in served.digests.items()
    }


async def test_no_answer_fails_and_each_is_judged_by_one_guard_alone(served: Served, tmp_path: Path) -> None:
    wanted, new = await fresh(served), served.digests[served.new]
    engine = engine_of(served, served.old)
    async with serving(engine, tmp_path) as running:
        swapped = await swap_under_load(running, engine, served.new)
        metrics = (await running.client.get("/metrics", headers={"authorization": f"Bearer {exchanged.ADMIN[0]}"})).text
        after = [await running.ask(prompt(skill, 0)) for skill in (TENS, FIFTIES)]
    assert swapped.reply.status_code == 200, swapped.reply.text
    assert (swapped.reply.json()["digest"], swapped.reply.json()["policy_version"]) == (new, 2)
    assert swapped.running_at_offer > 0, "answers were being written"
    assert swapped.waiting_at_exchange > 0, "and others had to wait"
    assert swapped.running_at_exchange == 0, "which none of those written before the exchange did"
    assert swapped.ready_at_exchange == (503, "reloading")
    assert len(swapped.answers) == CALLERS * ROUNDS, "no request failed"
    assert [each.reason for each in after] == ["length", "content_filter"], "the new guard's skill is another"
    assert "skillguard_unverified_requests_total 0.0" in metrics
    assert 'skillguard_guard_changes_total{guard="tens",outcome="made",what="artifact"} 1.0' in metrics
    assert "skillguard_policy_version 2.0" in metrics

    assert len(running.told("score")) == len(swapped.answers) + len(after)
    require_attributed(running, [*swapped.answers, *after], served, wanted, off=EXACT)


async def test_scores_are_those_of_the_new_guard_alone(served: Served, tmp_path: Path) -> None:
    """Of prompts whose beginnings the guard before had read."""
    wanted, new = await fresh(served), served.digests[served.new]
    engine = engine_of(served, served.old)
    async with serving(engine, tmp_path) as running:
        await swap_under_load(running, engine, served.new)
        got = {
            ids: (await engine.check(ids, f"c{i}", tenant=exchanged.TENANT))[0].score for i, ids in enumerate(PROMPTS)
        }
    assert list(got.values()) == pytest.approx(list(wanted[new].values()), abs=EXACT)


async def test_with_the_state_kept_scores_would_be_wrong(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: the same exchange, but for what the guard before kept at cache slots."""

    async def in_place(engine: EmbeddedEngine, guards: Mapping[str, LoadedGuard]) -> None:
        attachment, model = engine._attachment, engine._loaded
        assert attachment is not None
        bound = guards[NAME].method.bind(guards[NAME].guard, model.device, WHOLE)
        for site in (each for each in model.model.modules() if isinstance(each, _Site)):
            for act, *_ in site._acts:
                swap([*pairs(act, bound.at(site._place, model.sites.width(site._place.site)))])
        engine._take_guards(guards, attachment.bound)

    wanted, new = await fresh(served), served.digests[served.new]
    engine = engine_of(served, served.old)
    async with serving(engine, tmp_path) as running:
        for ids in PROMPTS:
            await running.ask(ids)
        assert await engine.offer(NAME, ArtifactPath(served.new))
        monkeypatch.setattr(EmbeddedEngine, "_install", in_place)
        await engine.exchange()
        got = {
            ids: (await engine.check(ids, f"c{i}", tenant=exchanged.TENANT))[0].score for i, ids in enumerate(PROMPTS)
        }
    wrong = [ids for ids in PROMPTS if got[ids] != pytest.approx(wanted[new][ids], abs=EXACT)]
    assert len(wrong) > len(PROMPTS) // 2


async def test_an_artifact_that_does_not_verify_is_put_out_again(served: Served, tmp_path: Path) -> None:
    """And nobody whose request waited meanwhile notices."""
    wanted, old = await fresh(served), served.digests[served.old]
    engine = engine_of(served, served.old)
    async with serving(engine, tmp_path) as running:
        swapped = await swap_under_load(running, engine, lie(served, tmp_path / "lying"))
        got = {
            ids: (await engine.check(ids, f"c{i}", tenant=exchanged.TENANT))[0].score for i, ids in enumerate(PROMPTS)
        }
        ready = await running.client.get("/ready")
    assert (swapped.reply.status_code, swapped.reply.json()["error"]["code"]) == (409, "change_refused")
    assert "canary 0" in swapped.reply.json()["error"]["message"]
    assert ready.status_code == 200
    assert len(swapped.answers) == CALLERS * ROUNDS
    assert {each.reason for each in swapped.answers if each.skill == TENS} == {"content_filter"}
    assert {each["digest"] for each in running.told("score", "abstention")} == {old}
    assert list(got.values()) == pytest.approx(list(wanted[old].values()), abs=EXACT)
    (change,) = running.told("admin")
    assert "canary 0" in change["refused"]
    assert change["after"] is None


@pytest.mark.parametrize("found", [True, False], ids=["found", "the control"])
async def test_the_cache_of_before_is_found_though_it_had_settled(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    """It refers to itself, and where memory is short there is no room for the new one beside it."""
    if not found:
        monkeypatch.setattr(live, "thawed", nullcontext)
    engine = engine_of(served, served.old)
    async with serving(engine, tmp_path) as running:
        cache = weakref.ref(engine._manager.batch_processor.cache)
        settle()
        try:
            assert (await running.reload(served.new)).status_code == 200
            assert (cache() is None) == found
            assert gc.get_freeze_count() > 0
        finally:
            gc.unfreeze()


async def test_a_pinned_guard_stays_pinned(served: Served, tmp_path: Path) -> None:
    pins = {folder: ArtifactPath(folder, digest) for folder, digest in served.digests.items()}
    options = EmbeddedOptions(model=str(served.model), artifacts=(pins[served.old],))
    engine = EmbeddedEngine(options)
    async with serving(engine, tmp_path):
        assert engine.info.guards[0].pinned
        with pytest.raises(UntrustedArtifactError, match="is pinned to a digest, so what takes its place has to be"):
            await engine.offer(NAME, ArtifactPath(served.new))
        with pytest.raises(UntrustedArtifactError, match="and it is pinned to sha256:0000"):
            await engine.offer(NAME, ArtifactPath(served.new, "0" * 64))
        assert (await engine.offer(NAME, pins[served.new])).pinned
        assert (await engine.offer(NAME, None)).digest == pins[served.old].digest


async def test_what_takes_a_guards_place_is_signed_too(served: Served, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "key")
    old, new = (Path(shutil.copytree(each, tmp_path / each.parent.name / NAME)) for each in (served.old, served.new))
    sign_artifact(old, read_artifact(old), read_private(tmp_path / "key"))
    trusted = (tmp_path / "key.pub",)
    with pytest.raises(UntrustedArtifactError, match="got no signature"):
        EmbeddedEngine(EmbeddedOptions(model=str(served.model), artifacts=(new,), trusted_key_files=trusted))
    engine = EmbeddedEngine(EmbeddedOptions(model=str(served.model), artifacts=(old,), trusted_key_files=trusted))
    async with serving(engine, tmp_path):
        (name,) = engine.info.guards[0].signed_by
        with pytest.raises(UntrustedArtifactError, match="got no signature"):
            await engine.offer(NAME, ArtifactPath(new))
        shutil.copy(old / "signatures.json", new)
        with pytest.raises(ArtifactError, match="is not of this artifact"):
            await engine.offer(NAME, ArtifactPath(new))
        (new / "signatures.json").unlink()
        sign_artifact(new, read_artifact(new), read_private(tmp_path / "key"))
        assert (await engine.offer(NAME, ArtifactPath(new))).signed_by == (name,)
