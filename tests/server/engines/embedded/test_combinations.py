"""Guards that are served together: verified under every set of what changes them, and composed as is said.

Suffixes: F feed-forward width, D the residual stream's, R rank.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from guards.artifact.pins import ArtifactPath
from guards.artifact.store import read_artifact, write_artifact
from guards.contract.accumulate import TOKEN
from guards.core.beside import Beside
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Scope
from guards.errors import AttachError
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard, RidgeSums, redirection
from guards.methods.registry import LUNAR_ABSTAIN
from guards.methods.rmu.guard import RmuGuard
from guards.methods.spans.guard import Judgement, LayerWeights, SpanGuard
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from tests.served import forget_prompt, ksd_guard, last_keys, retain_prompt, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, run

KEYS, LAST = 1, 2
"""The layer whose key vectors the detector reads, and the one after it."""


@dataclass(frozen=True)
class World:
    """A model, and a folder for artifacts."""

    loaded: LoadedModel
    model: Path
    folder: Path

    def factors(self, size: float, *, seed: int = 3) -> Factors:
        draw = torch.Generator().manual_seed(seed)
        a_RF = torch.randn(1, self.loaded.sites.d_ff, generator=draw) / self.loaded.sites.d_ff**0.5
        return Factors(a_RF, size * torch.randn(self.loaded.sites.d_model, 1, generator=draw), 1.0)

    def delta(self, name: str, factors: Factors, layer: int = 0) -> Path:
        guard = LunarGuard({layer: factors}, "unanswerable", 2.0, 1e-3)
        return write_guard(self.folder / name, self.loaded, guard)

    def verified(self, *artifacts: Path) -> tuple[str | None, dict[str, float], dict[str, Beside]]:
        """What the detector's canaries say, room of each guard, and what guards are to one another."""

        async def work(engine: EmbeddedEngine) -> tuple[str | None, dict[str, float], dict[str, Beside]]:
            found = await engine.verify()
            assert {reason for name, reason in found.items() if name != "keys"} == {None}
            return found["keys"], dict(engine._canary_room), dict(engine.info.beside)

        return run(self.options(*artifacts), work)

    def options(self, *artifacts: Path) -> EmbeddedOptions:
        return EmbeddedOptions(model=str(self.model), artifacts=artifacts)


@pytest.fixture
def world(served: Served, tmp_path: Path) -> World:
    return World(load_model(served[0], "cpu"), served[0], tmp_path)


@pytest.fixture
def detector(world: World) -> Path:
    return write_guard(world.folder / "keys", world.loaded, ksd_guard(world.loaded, layer=KEYS))


def test_a_detector_is_verified_with_what_changes_it_on_and_off(world: World, detector: Path) -> None:
    small, after = world.delta("small", world.factors(0.01)), world.delta("after", world.factors(8.0), LAST)
    trouble, room, beside = world.verified(after, detector, small)
    assert trouble is None
    assert beside == {"after": Beside(("small",)), "keys": Beside(("small",)), "small": Beside()}
    assert room["keys"] > 0.9, "with it off the scores are the calibrated ones, whatever acts behind what it reads"
    assert "small" in room


def test_an_intervention_that_moves_the_skill_out_of_a_detectors_reach_is_refused(world: World, detector: Path) -> None:
    trouble, _, _ = world.verified(detector, world.delta("large", world.factors(-8.0)))
    assert trouble is not None
    assert ", with large on: got a guard that" in trouble
    behind = world.delta("behind", world.factors(-8.0), LAST)
    assert world.verified(detector, behind)[0] is None, "positive control: behind its keys it moves nothing there"


def test_a_detector_that_no_longer_reads_what_it_was_calibrated_on_is_refused(world: World, detector: Path) -> None:
    """Of a request that has the intervention off nothing but its own canaries proves anything: as calibrated."""
    artifact, other = read_artifact(detector), world.folder / "other"
    canaries = tuple(
        each.model_copy(update={"scores": tuple(1.01 * score for score in each.scores)})
        for each in artifact.manifest.canaries
    )
    manifest = artifact.manifest.model_copy(update={"canaries": canaries})
    write_artifact(other / "keys", manifest, artifact.tensors)
    trouble, _, _ = world.verified(other / "keys", world.delta("small", world.factors(0.01)))
    assert trouble is not None
    assert trouble.startswith("canary 0, with small off: got score")


def test_what_two_undo_together_each_does_alone(world: World, detector: Path) -> None:
    """A request may have one of them off: that both on prove it is not enough."""
    one = world.factors(8.0)
    other = Factors(one.a_RF, -one.b_DR, one.usual)
    first, second = world.delta("first", one), world.delta("second", other)
    trouble, _, beside = world.verified(detector, first, second)
    assert beside["keys"] == Beside(("first", "second"))
    assert trouble is not None
    assert ", with second on, with first off: got a guard that" in trouble
    everything_on = run(world.options(detector, first, second), lambda engine: reads(engine, ("keys",)))
    alone = run(world.options(detector), lambda engine: reads(engine, ("keys",)))
    assert everything_on == pytest.approx(alone, rel=1e-3), "positive control: together they change nothing"


async def reads(engine: EmbeddedEngine, names: Sequence[str]) -> list[float]:
    """First scores of a prompt, with everything on."""
    readings = await engine.read(forget_prompt(0), "read")
    return [readings[name][1][0] for name in names]


def test_more_than_can_be_verified_are_refused_before_a_model_is_loaded(world: World, detector: Path) -> None:
    deltas = [world.delta(f"d{index}", world.factors(0.01, seed=index)) for index in range(5)]
    assert EmbeddedEngine(world.options(detector, *deltas[:4]))
    with pytest.raises(AttachError, match=r"guard 'keys': got 5 interventions that change what it reads"):
        EmbeddedEngine(world.options(detector, *deltas))


def test_an_exchanged_guard_is_something_else_to_the_others(world: World, detector: Path) -> None:
    change, behind = world.delta("change", world.factors(0.01)), world.delta("behind", world.factors(0.01), LAST)

    async def work(engine: EmbeddedEngine) -> list[Beside]:
        found = [engine.info.beside["keys"]]
        for source in (ArtifactPath(behind), ArtifactPath(change)):
            await engine.offer("change", source)
            await engine.exchange()
            assert set((await engine.verify()).values()) == {None}
            found.append(engine.info.beside["keys"])
        return found

    assert run(world.options(detector, change), work) == [Beside(("change",)), Beside(), Beside(("change",))]


SETS = ((), ("a",), ("b",), ("a", "b"))
"""Of two interventions, those that are off for a tenant."""
PROMPTS = (forget_prompt(0), retain_prompt(0), retain_prompt(1))


def drawn(answer: Answer) -> tuple[str, list[float]]:
    return answer.text, [round(token.logprob, 3) for token in answer.logprobs]


async def asked(engine: EmbeddedEngine, prompt: int, off: Sequence[str]) -> tuple[str, list[float]]:
    policy = Policy({name: Rule(GuardMode.OFF) for name in off})
    name = f"{prompt} without {off}"
    return drawn(await ask(engine, PROMPTS[prompt], name, policy=policy, max_tokens=12, logprobs=0))


def test_two_at_one_place_add_up_for_each_tenant_of_a_batch(world: World) -> None:
    """In either order, each tenant gets what a server with its own ones alone would give, and with both their sum."""
    one, other = world.factors(8.0, seed=3), world.factors(8.0, seed=4)
    a, b = world.delta("a", one), world.delta("b", other)
    both = Factors(torch.cat([one.a_RF, other.a_RF]), torch.cat([one.b_DR, other.b_DR], dim=1), 1.0)
    added = write_guard(world.folder / "added", world.loaded, RmuGuard("adaptive", {0: both}))

    async def alone(engine: EmbeddedEngine) -> list[tuple[str, list[float]]]:
        return [await asked(engine, prompt, ()) for prompt in range(len(PROMPTS))]

    async def mixed(engine: EmbeddedEngine) -> list[list[tuple[str, list[float]]]]:
        found = await asyncio.gather(*(asked(engine, prompt, off) for off in SETS for prompt in range(len(PROMPTS))))
        return [list(found[i : i + len(PROMPTS)]) for i in range(0, len(found), len(PROMPTS))]

    wanted = [run(world.options(*each), alone) for each in ((added,), (b,), (a,), ())]
    assert len({str(each) for each in wanted}) == len(SETS)  # positive control
    for order in ((a, b), (b, a)):
        assert run(world.options(*order), mixed) == wanted


def redirecting(world: World, layer: int) -> tuple[Path, Path]:
    """A change of this layer and its own gate, solved on last tokens of both kinds of prompts."""
    sums = RidgeSums(world.loaded.sites.d_ff, torch.device("cpu"))
    for kind in (forget_prompt, retain_prompt):
        sums.update(last_keys(world.loaded, layer, [kind(i) for i in range(100, 220)]), forget=kind is forget_prompt)
    w_F = sums.solve((1e-3,))[0]
    draw = torch.Generator().manual_seed(5)
    r_D = torch.randn(world.loaded.sites.d_model, generator=draw)
    change = world.delta("redirects", redirection(r_D, w_F, strength=8.0, usual=1.0), layer)
    gate = SpanGuard((LayerWeights(layer, -w_F.float(), -1.0),), (Judgement(TOKEN, 0.5),), Scope.PROMPT)
    return change, write_guard(world.folder / "abstains", world.loaded, gate, method=LUNAR_ABSTAIN)


def test_a_tenants_policy_says_whether_a_text_is_redirected_or_refused(world: World) -> None:
    """One w, in one batch: the change and its gate leave each other alone."""
    change, gate = redirecting(world, KEYS)

    async def verified(engine: EmbeddedEngine) -> None:
        assert engine.info.beside == {"redirects": Beside(), "abstains": Beside()}
        assert await engine.verify() == {"redirects": None, "abstains": None}

    async def all_of(engine: EmbeddedEngine, *tenants: tuple[str, ...]) -> list[list[Answer]]:
        found = await asyncio.gather(
            *(
                ask(engine, prompt, f"{index} {off}", policy=without(*off), max_tokens=12)
                for off in tenants
                for index, prompt in enumerate(PROMPTS)
            )
        )
        return [list(found[i : i + len(PROMPTS)]) for i in range(0, len(found), len(PROMPTS))]

    async def together(engine: EmbeddedEngine) -> list[list[Answer]]:
        await verified(engine)
        return await all_of(engine, ("abstains",), ("redirects",), ())

    redirected, refused, both = run(world.options(change, gate), together)
    (moved,) = run(world.options(change), lambda engine: all_of(engine, ()))
    (plain,) = run(world.options(), lambda engine: all_of(engine, ()))
    assert texts(moved) != texts(plain)  # positive control
    assert texts(redirected) == texts(moved)
    assert [each.finish.reason is FinishReason.ABSTAIN for each in refused] == [True, False, False]
    assert texts(refused[1:]) == texts(plain[1:])
    assert [each.finish.reason is FinishReason.ABSTAIN for each in both] == [True, False, False]
    assert texts(both[1:]) == texts(moved[1:])


def without(*off: str) -> Policy:
    """The intervention `redirects` has no tau, and its gate has one."""
    taus = {"redirects": (), "abstains": (0.5,)}
    return Policy({name: Rule(GuardMode.OFF, Scope.PROMPT, taus[name]) for name in off})


def texts(answers: Sequence[Answer]) -> list[str]:
    return [each.text for each in answers]
