"""Compiled means compiled: the graph that runs is the guarded one, and no other one is ever taken for it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.engines.errors import EngineStoppedError
from server.engines.events import FinishReason
from tests.server.engines.vllm.live import OTHERS, SUMS, Live, greedy, live, on_vllm


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables, for engines started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def break_python_hooks(worker: Any) -> bool:
    """Runs in the worker: from now on the guards' Python code fails. Returns whether the model is compiled."""
    from guards.inside.vllm import board as vllm_board

    def fail(*_: Any) -> None:
        raise AssertionError("the hook ran in Python")

    vllm_board._Site.forward = fail  # type: ignore[assignment,method-assign]
    return not worker.model_runner.get_model().model.do_not_compile


def drop_hooks(worker: Any) -> int:
    """Runs in the worker: takes a guard's hooks off behind the board's back."""
    worker.dropped = [
        (module, dict(module._forward_pre_hooks))
        for module in worker.model_runner.get_model().modules()
        if hasattr(module, "skillguard_score_input")
    ]
    for module, _ in worker.dropped:
        module._forward_pre_hooks.clear()
    return len(worker.dropped)


def put_hooks_back(worker: Any) -> None:
    """Runs in the worker: undoes `drop_hooks`."""
    for module, hooks in worker.dropped:
        module._forward_pre_hooks.update(hooks)


def call(running: Live, work: Any) -> list[Any]:
    """What `work` returns in each worker."""
    found: list[Any] = running.wait(running.engine._llm.collective_rpc(work))  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compile cache of these tests' own."""
    return tmp_path_factory.mktemp("vllm")


@contextmanager
def started(cache: Path, *guards: str, flags: Sequence[str] = ()) -> Iterator[Live]:
    with (
        environment(VLLM_CACHE_ROOT=str(cache), VLLM_ALLOW_INSECURE_SERIALIZATION="1"),
        live(on_vllm(*guards, flags=flags)) as running,
    ):
        yield running


def abstained(running: Live) -> list[bool]:
    """Whether sums, then others, were withheld."""
    answers = running.draw((*SUMS, OTHERS[1]), greedy(max_tokens=4))
    assert all(answer.finish.reason is not FinishReason.ERROR for answer in answers)
    return [answer.finish.reason is FinishReason.ABSTAIN for answer in answers]


def test_the_graph_itself_guards(cache: Path) -> None:
    with started(cache, "ksd-mathematics") as running:
        assert call(running, break_python_hooks) == [True]
        assert abstained(running) == [True, True, True, False]


def test_other_artifacts_never_share_a_graph(cache: Path) -> None:
    """One cache for four starts: with one guard (above), another, none, and the first again, each right at once."""
    graphs = cache / "torch_compile_cache" / "torch_aot_compile"
    before = set(graphs.iterdir())
    assert before
    with started(cache, "ksd-code") as running:
        assert abstained(running) == [False, False, False, True]
    after = set(graphs.iterdir())
    assert after > before
    with started(cache) as running:
        assert abstained(running) == [False, False, False, False]
    assert set(graphs.iterdir()) > after
    everything = set(graphs.iterdir())
    with started(cache, "ksd-mathematics") as running:
        assert abstained(running) == [True, True, True, False]
    assert set(graphs.iterdir()) == everything


@pytest.fixture(scope="module")
def uncompiled(cache: Path) -> Iterator[Live]:
    """vLLM with hooks that run in Python, for tests of which the last one ends it."""
    with started(cache, "ksd-mathematics", flags=("--enforce-eager",)) as running:
        yield running


def test_weights_cannot_change_under_the_guards(uncompiled: Live) -> None:
    def change(worker: Any) -> dict[str, str]:
        from guards.inside.vllm.worker import WEIGHT_CHANGES

        answers = {}
        for name in WEIGHT_CHANGES:
            try:
                getattr(worker, name)()
            except Exception as error:
                answers[name] = str(error)
        return answers

    answers = call(uncompiled, change)[0]
    assert len(answers) == 8
    assert all(answer.startswith("weights cannot change") for answer in answers.values()), answers


def test_a_hook_that_does_not_fire_lets_nothing_out(uncompiled: Live) -> None:
    assert uncompiled.draw(OTHERS[:1], greedy())[0].chunks
    assert call(uncompiled, drop_hooks)[0] > 0
    try:
        for answer in uncompiled.draw(OTHERS, greedy(min_tokens=5)):
            assert answer.finish.reason is FinishReason.ERROR
            assert answer.chunks == ()
            assert not answer.finish.verified
        verified = uncompiled.wait(uncompiled.engine.verify())
        assert "no finite reading" in str(verified["ksd-mathematics"])
    finally:
        call(uncompiled, put_hooks_back)
    assert abstained(uncompiled) == [True, True, True, False]


def test_uncompiled_the_same_trick_is_noticed(uncompiled: Live) -> None:
    """Positive control of the first test: here the hooks do run in Python. Nothing gets out when they fail."""
    assert call(uncompiled, break_python_hooks) == [False]
    answer = uncompiled.draw(OTHERS[:1], greedy())[0]
    assert answer.finish.reason is FinishReason.ERROR
    assert answer.chunks == ()
    with pytest.raises(EngineStoppedError):
        uncompiled.draw(OTHERS[:1], greedy())
