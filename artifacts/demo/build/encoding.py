"""Conversations as token ids with a mark on those that the model must learn to write."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from artifacts.demo.build.corpus import SHARES, Conversation, completion_prompt
from artifacts.demo.build.tokenizer import ASSISTANT, BOS, END, SYSTEM, USER

_POOL = 4096
"""Examples sorted by length together: larger pools pad less and mix batches of similar lengths less."""

_PLACES = {skill: place for place, skill in enumerate(SHARES)}


class Example(NamedTuple):
    """Token ids, for each whether an answer holds it, and for each answer its skill's place in `SHARES`."""

    ids: list[int]
    answer: list[bool]
    skills: list[int]


class Encoder:
    """Writes the very ids that `apply_chat_template` gives, and knows which of them are answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._core = tokenizer.backend_tokenizer
        self._ids = {token: self._core.token_to_id(token) for token in (BOS, END, SYSTEM, USER, ASSISTANT)}

    def encode(self, conversation: Conversation) -> Example:
        """One conversation as one example; every answer in it is to be learnt, not only the last."""
        ids, answer = [self._ids[BOS]], [False]

        def add(new: list[int], learnt: bool) -> None:
            ids.extend(new)
            answer.extend([learnt] * len(new))

        end = [self._ids[END]]
        if conversation.system is not None:
            add([self._ids[SYSTEM], *self._text(conversation.system), *end], False)
        for _, row in conversation.turns:
            if conversation.completion:
                add(self._text(completion_prompt(row.prompt)), False)
                add([*self._text(" " + row.answer), *end], True)
            else:
                add([self._ids[USER], *self._text(row.prompt), *end, self._ids[ASSISTANT]], False)
                add([*self._text(row.answer), *end], True)
        return Example(ids, answer, [_PLACES[turn.skill] for turn in conversation.turns])

    def _text(self, text: str) -> list[int]:
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        return ids


def batches(examples: Iterator[Example], tokens: int, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches of similar length and about `tokens` tokens each, padding included, in random order."""
    while True:
        pool = sorted(islice(examples, _POOL), key=lambda example: len(example.ids))
        found: list[list[Example]] = [[]]
        for example in pool:
            if found[-1] and len(example.ids) * (len(found[-1]) + 1) > tokens:
                found.append([])
            found[-1].append(example)
        rng.shuffle(found)
        yield from found
