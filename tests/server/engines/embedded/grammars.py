"""What tests of grammars share."""

import json

import torch

from guards.model.encoding import TextCodec
from server.engines.embedded.grammars import Grammars, Match
from server.engines.request import Grammar, GrammarKind

V, END, USER, STOP = 4096, 2, 4, 300
STOPS = frozenset({END, STOP})


def possible(match: Match) -> set[int]:
    logits_V = torch.zeros(V)
    constrained_V = match.constrain(logits_V)
    assert not logits_V.any(), "what is given stays"
    return set(torch.isfinite(constrained_V).nonzero().flatten().tolist())


def matches(grammars: Grammars, codec: TextCodec, grammar: Grammar, text: str) -> bool:
    """Whether an answer can be this text: each token possible where it comes, and then the end."""
    match = grammars.match(grammar, frozenset({END}))
    for token in codec.encode_part(text):
        if token not in possible(match):
            return False
        match.accept(token)
    return END in possible(match)


def schema(document: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(document))
