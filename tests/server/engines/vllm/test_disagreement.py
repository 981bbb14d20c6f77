"""What the front says of an answer whose worker and readings contradict each other. Starts no engine."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guards.contract.columns import Columns
from guards.core.policy import Policy, Rule
from guards.inside.vllm.events import STOP_REASON, RowReport
from guards.methods.registry import CUBE
from guards.model.encoding import TextCodec
from guards.model.folder import load_tokenizer
from guards.model.shard import WHOLE
from server.engines.answer_state import AnswerState, GuardFacts
from server.engines.events import Finish, FinishReason
from server.engines.options import VllmOptions
from server.engines.request import EngineRequest, Sampling
from server.engines.stream import AnswerStream
from server.engines.text import OthersOpenings
from server.errors import UnverifiedError, reply_of
from server.generation import require_sound
from server.metrics import Metrics
from tests.guards.samples import cubes
from tests.server.engines.vllm.live import MODEL

ALLOWED, FIRED = 9.0, 1.0


@pytest.fixture(scope="module")
def front() -> Any:
    """An engine that never starts, whose one guard is a cube: it fires where its entry holds `FIRED`."""
    from server.engines.vllm.engine import VllmEngine

    bound = CUBE.bind(cubes(), torch.device("cpu"), WHOLE)
    engine = VllmEngine(VllmOptions(model=str(MODEL)))
    engine._codec = TextCodec(load_tokenizer(MODEL))
    engine._facts = {"sums": GuardFacts("sums", "ksd", bound.parts, None, "0" * 64)}
    engine._columns = Columns({"sums": bound})
    return engine


def finish_of(front: Any, params: Any, *, tokens: tuple[int, ...] = (), withheld: bool = False) -> Finish:
    """How an answer ends whose first row told `params`, and whose output was this."""
    answer = AnswerState(EngineRequest("r", (4, 5), Sampling(max_tokens=1), Policy({"sums": Rule(taus=(3.0,))})))
    if params is not None:
        front._take(answer, params)
    output = SimpleNamespace(
        token_ids=tokens,
        logprobs=None,
        stop_reason=STOP_REASON if withheld else None,
        finish_reason="stop" if withheld else "length",
    )

    async def read() -> Finish:
        stream = AnswerStream(answer, front._codec.tokenizer, frozenset({2}), lambda finished: None, OthersOpenings())
        stream.outputs.put_nowait(front._drawn(answer, output, ()))
        async for event in stream:
            if isinstance(event, Finish):
                return event
        raise AssertionError("events without a Finish")

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("params", "tokens", "withheld", "why"),
    [
        (RowReport(0, (FIRED,), False).dump(), (10,), False, "drew a token, and its readings say ABSTAIN"),
        (RowReport(0, (ALLOWED,), True).dump(), (), True, "withheld a token, and its readings say ALLOW"),
        (RowReport(0, (), True).dump() | {"skillguard": "?"}, (), True, "a reading could not be judged"),
        (None, (), True, "a token was withheld, and nothing said why"),
        (None, (10,), False, "a token was drawn that no guard judged"),
    ],
)
def test_it_is_a_broken_guard_and_the_alarm_rings(
    front: Any, params: Any, tokens: tuple[int, ...], withheld: bool, why: str
) -> None:
    finish = finish_of(front, params, tokens=tokens, withheld=withheld)
    assert (finish.reason, finish.verified) == (FinishReason.ERROR, False)
    assert why in str(finish.error)
    with pytest.raises(UnverifiedError) as refused:
        require_sound(finish)
    assert reply_of(refused.value).code == "guard_error"
    metrics = Metrics()
    metrics.answer_observer(started=0.0)(finish)
    assert metrics.registry.get_sample_value("skillguard_unverified_requests_total") == 1


def test_where_they_agree_all_is_well(front: Any) -> None:
    finish = finish_of(front, RowReport(0, (ALLOWED,), False).dump(), tokens=(10,))
    assert (finish.reason, finish.verified) == (FinishReason.LENGTH, True)
    finish = finish_of(front, RowReport(0, (FIRED,), True).dump(), withheld=True)
    assert (finish.reason, finish.verified) == (FinishReason.ABSTAIN, True)
