"""Grammars that answers must match, as llguidance compiles and follows them over one model's tokens.

Suffix: V vocabulary.
"""

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from guards.model.encoding import TextCodec
from server.engines.embedded.trial import Trial, plain_tokenizer
from server.engines.errors import EngineStoppedError, InvalidOptionError
from server.engines.grammars import Compiled
from server.engines.request import Grammar, GrammarKind

MOST_ITEMS = 10_000
"""Steps of the parser for one token, a fifth of what llguidance takes by itself: the batch of everybody waits for them.
Schemas need some hundred; a grammar of many ways to read one text takes a third of a second where nothing ends it.
"""
MOST_OF_TERMINALS = 35_000
"""Steps to put an EBNF grammar's terminals together; llguidance takes 1,000,000 by itself. Terminals name one another,
so that 200 characters make one of 500,000 parts. 1,000 keywords take 2,000, a class of all scripts' letters 16,000.
"""
_NOTHING = "NoExtension"
"""llguidance's word for a beginning that nothing can follow."""


class Match:
    """One answer's way through a grammar.

    `stops` end the answer: they may come where the grammar is complete, and nowhere else. `control` tokens never come:
    Lark's notation can name them, and what they open would be taken for another turn.
    """

    def __init__(self, matcher: Any, stops: Iterable[int], control: Iterable[int]) -> None:
        self._matcher = matcher
        self._stops = frozenset(stops)
        self._stop_ids = torch.tensor(sorted(self._stops), dtype=torch.int64)
        self._control_ids = torch.tensor(sorted(control), dtype=torch.int64)
        self._ended = False

    def constrain(self, logits_V: Tensor) -> Tensor:
        """The logits of what may come next; once the answer has ended, of anything.

        Raises ValueError where llguidance gives the grammar up, because following it costs too much.
        """
        if self._ended:
            return logits_V
        allowed_V = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        if said := self._matcher.get_error():
            raise ValueError(f"the grammar cannot be followed: {said[:300]}")
        allowed_V = allowed_V[: logits_V.shape[-1]].bool()
        allowed_V[self._control_ids] = False
        allowed_V[self._stop_ids] = self._matcher.is_accepting()
        return logits_V.masked_fill(~allowed_V.to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """What was drawn. Raises ValueError where the grammar does not allow it."""
        if self._ended:
            return
        self._ended = token in self._stops
        if not (self._matcher.is_accepting() if self._ended else self._matcher.consume_token(token)):
            raise ValueError(f"the grammar does not allow token {token}")


class Grammars:
    """llguidance's compiler for one model, which keeps what it compiled. Safe to call from several threads."""

    def __init__(self, codec: TextCodec, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self._codec, self._vocabulary, self._stop_ids = codec, vocabulary, stop_ids
        self._lock = threading.Lock()
        self._tokens: tuple[Any, Trial] | None = None
        self._closed = False
        self._compiled = Compiled(self._compile)

    def check(self, grammar: Grammar) -> None:
        """Raises InvalidOptionError where it cannot be kept in full, or is none."""
        self._compiled(grammar)

    def match(self, grammar: Grammar, stops: frozenset[int]) -> Match:
        """The beginning of an answer. Raises like `check`."""
        return Match(self._compiled(grammar).deep_copy(), stops, self._codec.special_ids)

    def close(self) -> None:
        """Ends the process that tries grammars: none is compiled any more."""
        with self._lock:
            self._closed = True
            if self._tokens is not None:
                self._tokens[1].close()

    def _compile(self, grammar: Grammar) -> Any:
        """An LLMatcher at its beginning."""
        import llguidance

        tokens, trial = self._tokenizer()
        limits = _limits(grammar.kind)
        try:
            text = trial.text(grammar, limits)
        except ValueError as error:
            raise _refused(grammar, str(error)) from error
        matcher = llguidance.LLMatcher(tokens, text, log_level=0, limits=llguidance.LLParserLimits(**limits))
        matcher.compute_bitmask()  # the first token's, as in the trial
        if said := matcher.get_error():
            raise _refused(grammar, said)
        return matcher

    def _tokenizer(self) -> tuple[Any, Trial]:
        """llguidance's view of the tokenizer, made when a request first asks for it: it may take a second."""
        with self._lock:
            if self._closed:
                raise EngineStoppedError("the engine has stopped")
            if self._tokens is None:
                from llguidance.hf import from_tokenizer

                tokenizer, stops = self._codec.tokenizer, sorted(self._stop_ids)
                size = max(self._vocabulary, len(tokenizer))
                try:
                    tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=stops)
                except ValueError as error:
                    raise InvalidOptionError(
                        f"llguidance cannot read this model's tokenizer ({str(error)[:100]}); leave the option out",
                        "grammar",
                    ) from error
                self._tokens = tokens, Trial(plain_tokenizer(tokenizer), size, stops)
            return self._tokens


def _limits(kind: GrammarKind) -> dict[str, Any]:
    """Where llguidance's own are not kept."""
    limits = {"verbose_errors": False, "step_max_items": MOST_ITEMS}
    if kind is GrammarKind.EBNF:  # large terminals are followed when they come: a large vocabulary's all take more
        limits |= {"initial_lexer_fuel": MOST_OF_TERMINALS, "precompute_large_lexemes": False}
    return limits


def _refused(grammar: Grammar, said: str) -> InvalidOptionError:
    if said.startswith(_NOTHING):
        return InvalidOptionError(f"the {grammar.kind} matches no text", "grammar")
    return InvalidOptionError(f"the {grammar.kind} cannot be compiled: {' '.join(said.split())[:300]}", "grammar")
