"""A request's options on their way to vLLM: what takes long is checked once, and what arrives is what vLLM would make.

vLLM reads requests here as it does when it serves; it does not start.
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest

from guards.core.policy import Policy
from server.engines.errors import InvalidOptionError
from server.engines.grammars import KEPT
from server.engines.options import VllmOptions
from server.engines.request import EngineRequest, Grammar, GrammarKind
from tests.server.engines.vllm.live import MODEL, SMALL, greedy

WORDS = ("red", "blue sky")
SCHEMA = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
CHOICE = Grammar(GrammarKind.CHOICE, '["a", "b"]')


class Reader:
    """An engine that was configured and not started, and vLLM's own reader of requests for it."""

    def __init__(self) -> None:
        from vllm.v1.engine.input_processor import InputProcessor

        from server.engines.vllm.engine import VllmEngine

        self.engine = VllmEngine(VllmOptions(model=str(MODEL), flags=SMALL))
        self._processor = InputProcessor(self.engine._configure(MODEL))

    def read(self, parameters: Any) -> Any:
        """What vLLM makes of them on a request's way to its core."""
        from vllm.inputs import tokens_input

        return self._processor.process_inputs("r", tokens_input([1, 2, 3]), parameters, ("generate",)).sampling_params


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The grammars that vLLM was asked to compile so far."""
    from vllm.v1.structured_output import backend_xgrammar

    asked: list[Any] = []
    validate: Callable[[Any], None] = backend_xgrammar.validate_xgrammar_grammar

    def counted(parameters: Any) -> None:
        if parameters.structured_outputs is not None:
            asked.append(parameters.structured_outputs)
        validate(parameters)

    monkeypatch.setattr(backend_xgrammar, "validate_xgrammar_grammar", counted)
    return asked


def test_a_grammar_is_compiled_once_for_all_answers(reader: Reader, compiled: list[Any]) -> None:
    from server.engines.vllm.sampling import sampling_params, take_prepared

    sampling = greedy(grammar=SCHEMA)
    reader.engine.prepare(sampling)
    assert len(compiled) == 1
    for _ in range(3):
        parameters = reader.read(sampling_params(sampling, Policy()))
        take_prepared(parameters, sampling, (), reader.engine._grammars)
        assert parameters.structured_outputs.json == SCHEMA.text
    assert len(compiled) == 1


def test_however_many_grammars_wait_none_is_compiled_again(reader: Reader, compiled: list[Any]) -> None:
    from server.engines.vllm.sampling import sampling_params, take_prepared

    waiting = [greedy(grammar=Grammar(GrammarKind.CHOICE, f'["{index}"]')) for index in range(2 * KEPT)]
    for sampling in waiting:
        reader.engine.prepare(sampling)
    assert len(compiled) == len(waiting), "positive control"
    for sampling in waiting:
        take_prepared(sampling_params(sampling, Policy()), sampling, (), reader.engine._grammars)
    assert len(compiled) == len(waiting)
    again = greedy(grammar=Grammar(GrammarKind.CHOICE, '["0"]'))
    waiting.clear()
    del sampling
    gc.collect()
    reader.engine.prepare(again)
    assert len(compiled) == 2 * KEPT + 1, "what no request has any more is not kept for ever"


@pytest.mark.parametrize("asked", [{"grammar": CHOICE}, {"bad_words": WORDS}, {"grammar": CHOICE, "bad_words": WORDS}])
def test_vllm_is_given_what_it_would_have_made(reader: Reader, compiled: list[Any], asked: dict[str, Any]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    from server.engines.vllm.sampling import sampling_params, take_prepared

    sampling = greedy(**asked)
    reader.engine.prepare(sampling)
    ours = reader.read(sampling_params(sampling, Policy()))
    take_prepared(ours, sampling, reader.engine._bad_word_ids(sampling), reader.engine._grammars)
    direct = sampling_params(sampling, Policy())
    direct.bad_words = list(sampling.bad_words)
    direct.structured_outputs = StructuredOutputsParams(choice=["a", "b"]) if "grammar" in asked else None
    assert ours == reader.read(direct)
    assert compiled or "grammar" not in asked, "positive control"


def test_tenants_share_no_cached_prefix(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.engines.vllm.sampling import cache_salt

    salts: list[str | None] = []

    class Asked:
        errored = False

        @property
        def input_processor(self) -> Any:
            return self

        def process_inputs(self, request_id: str, prompt: Any, *_: Any) -> Any:
            salts.append(prompt.get("cache_salt"))
            raise ValueError("that is all that is asked here")

    engine = reader.engine
    engine._bind({})
    engine._tasks = ("generate",)
    monkeypatch.setattr(engine, "_llm", Asked())
    for tenant in ("", "a", "b", "a"):
        with pytest.raises(InvalidOptionError, match="all that is asked"):
            engine.submit(EngineRequest("r", (1, 2, 3), greedy(max_tokens=1), tenant=tenant))
    none, first, other, again = salts
    assert none is None
    assert first == again != other
    assert len({cache_salt(tenant, off) for tenant in ("", "a", '["a"]') for off in ((), ("a",), ("a", "b"))}) == 9


def test_what_vllm_does_not_take_is_refused_each_time(reader: Reader) -> None:
    sampling = greedy(grammar=Grammar(GrammarKind.EBNF, "root ::= other"))
    for _ in range(2):
        with pytest.raises(InvalidOptionError) as error:
            reader.engine.prepare(sampling)
        assert error.value.param == "grammar"
