"""Running states under whatever an engine may do with its cache, against a dictionary of whole texts.

The engine is imitated as far as slots go: blocks that are shared by their text as soon as they are scheduled, chunks,
preemption, eviction, and sequences of a pass in any order.
"""

from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from guards.contract.accumulate import TOKEN, OverTokens
from guards.contract.running import HUGE, RunningStates
from guards.contract.slots import HISTORY, Sequences, link
from guards.contract.spans import MessageMean, Rise
from guards.contract.turn_finder import TurnFinder
from guards.model.openings import Opening
from tests.guards.contract.running import sequences
from tests.guards.contract.strategies import LEAST, MEAN, Cusum

Text = tuple[int, ...]
CPU = torch.device("cpu")
BLOCK = 2
COLUMNS: tuple[OverTokens, ...] = (
    *(MEAN, LEAST, TOKEN, Cusum(0.5), MEAN, Cusum(-0.25)),
    *(Rise(0.5, written=False), Rise(0.25, written=True), MessageMean(2, written=False), MessageMean(1, written=True)),
)
OPENINGS = (Opening((1, 0, 0), 2, written=True), Opening((1, 1, 0), 2, written=False))
"""Token 1 opens messages: an answer where 0 follows, a question where 1 does."""
BAD = (float("nan"), float("inf"), float("-inf"), -2 * HUGE)


def value_of(text: Text, column: int) -> float:
    """What a column says of a text's last token: a whole number of eighths, or rarely a value that spoils the rest."""
    draw = Random(f"{text} {column}")
    return draw.choice(BAD) if draw.random() < 0.02 else draw.randrange(-64, 65) / 8


def opened_by(text: Text) -> Opening | None:
    """The opening that is told by a text's last token."""
    return next((each for each in OPENINGS if text[-each.named :] == each.tokens[: each.named]), None)


def messages_of(text: Text, values: list[float], *, written: bool) -> list[list[float]]:
    """Evidence of the tokens of one side's messages, since it had the word. What is written is one message."""
    side: bool | None = None
    spoken: bool | None = None
    messages: list[list[float]] = [[]]
    for at in range(len(text)):
        so_far = text[: at + 1]
        if opening := opened_by(so_far):
            if opening.written == written and opening.written != spoken:
                messages = [[]]
            elif opening.written == written and not written:
                messages = [*messages, []]
            side = opening.written
        of_template = any(so_far[-size:] == each.tokens[:size] for each in OPENINGS for size in range(1, 4))
        if at and not of_template:
            spoken = bool(side)
            if spoken == written:
                messages[-1].append(1 - values[at])
    return messages


def rise_or_mean(strategy: Rise | MessageMean, text: Text, values: list[float]) -> float:
    """By definition."""
    messages = messages_of(text, values, written=strategy.written)
    if isinstance(strategy, MessageMean):
        return 1 - sum(messages[-1]) / (len(messages[-1]) + strategy.weight)
    turn = [each for message in messages for each in message]
    stretches = [
        sum(turn[i:j]) - (j - i) * strategy.kappa for i in range(len(turn)) for j in range(i + 1, len(turn) + 1)
    ]
    return 1 / (1 + max([0.0, *stretches]))


def expected(text: Text, column: int) -> float:
    """What a column reads after a text, by the definition of its strategy."""
    strategy, values = COLUMNS[column], [value_of(text[: i + 1], column) for i in range(len(text))]
    if strategy == TOKEN:
        return values[-1]
    if not all(abs(value) <= HUGE for value in values):
        return float("nan")
    if strategy == MEAN:
        return sum(values) / len(values)
    if strategy == LEAST:
        return min(values)
    if isinstance(strategy, Rise | MessageMean):
        return rise_or_mean(strategy, text, values)
    assert isinstance(strategy, Cusum)
    sums = [sum(values[:i]) - i * strategy.kappa for i in range(len(values) + 1)]
    return max(late - early for i, late in enumerate(sums) for early in sums[: i + 1])


@dataclass
class Request:
    """A text of which some tokens are computed, and the blocks that hold them."""

    text: Text
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    def slot(self, position: int) -> int:
        return self.blocks[position // BLOCK] * BLOCK + position % BLOCK


@dataclass
class Engine:
    """A cache of a few blocks, and who uses them."""

    random: Random
    free: list[int]
    looks: bool = True
    users: dict[int, int] = field(default_factory=dict)
    known: dict[Text, int] = field(default_factory=dict)
    forgotten: int = 0
    written: int = 0
    """Tokens of answers."""
    depths: list[int] = field(default_factory=list)
    """Of every sequence of a pass, how many of its sequences it goes on from, one by one."""

    def _take(self, block: int) -> int:
        if block in self.free:
            self.free.remove(block)
        self.users[block] = self.users.get(block, 0) + 1
        return block

    def _fresh(self) -> int:
        """The block that was freed longest ago; its text is forgotten."""
        block, texts = self._take(self.free[0]), len(self.known)
        self.known = {text: at for text, at in self.known.items() if at != block}
        self.forgotten += texts - len(self.known)
        return block

    def release(self, request: Request) -> None:
        """Gives its blocks back. They keep their texts until somebody takes them."""
        for block in reversed(request.blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free.append(block)
        request.computed, request.blocks = 0, []

    def schedule(self, request: Request) -> range:
        """The positions that this pass computes of a request; none where blocks are short."""
        text = request.text
        if not request.blocks:
            while (end := (len(request.blocks) + 1) * BLOCK) < len(text) and text[:end] in self.known:
                request.blocks.append(self._take(self.known[text[:end]]))
                request.computed = end
        whole = len(text) - request.computed
        more = whole if self.random.random() < 0.5 else self.random.randint(1, whole)
        more = min(more, (len(request.blocks) + len(self.free)) * BLOCK - request.computed)
        now = range(request.computed, request.computed + more)
        while len(request.blocks) * BLOCK < now.stop:
            request.blocks.append(self._fresh())
        request.computed = now.stop
        for end in range(BLOCK, now.stop + 1, BLOCK):
            self.known.setdefault(text[:end], request.blocks[end // BLOCK - 1])
        return now


def asked(random: Random, count: int, longest: int) -> list[Request]:
    """Requests whose texts begin alike, and unlike those of other times."""
    topic, ones = random.randint(2, 99), random.choice((0.05, 0.3, 0.6))
    return [
        Request((topic, *[int(random.random() < ones) for _ in range(random.randint(0, longest - 1))]))
        for _ in range(count)
    ]


def depths(bounds: list[int], slots: list[int], previous: list[int]) -> list[int]:
    """How long a chain of sequences of this pass lies before each of them."""
    owner = {slot: i for i in range(len(previous)) for slot in slots[bounds[i] : bounds[i + 1]]}
    found = []
    for slot in previous:
        depth = 0
        while slot in owner:
            slot, depth = previous[owner[slot]], depth + 1
        found.append(depth)
    return found


class Books:
    """What is kept at slots."""

    def __init__(self) -> None:
        self.states, self.turns = RunningStates(COLUMNS, CPU), TurnFinder(OPENINGS, CPU)

    def read(
        self, values: list[list[float]], ids: list[int], positions: list[int], found: Sequences, looks: bool
    ) -> Tensor:
        links = link(torch.tensor(positions), found, looks=looks)
        return self.states.extend(torch.tensor(values), links, self.turns.find(torch.tensor(ids), links))


def step(engine: Engine, waiting: list[Request], books: Books) -> tuple[Tensor, Tensor]:
    """One forward pass over some of the requests: what was read [T, C], and what was to be read."""
    random = engine.random
    for request in random.sample(waiting, random.randint(0, len(waiting) // 2)):
        engine.release(request)
    turns = random.sample(waiting, random.randint(1, len(waiting)))
    if random.random() < 0.5:
        turns.sort(key=lambda request: len(request.text))  # each may go on from the one before
    chosen = [(request, engine.schedule(request)) for request in turns]
    random.shuffle(chosen)
    bounds, slots, previous, before, texts, positions = [0], [], [], [], [], []
    for request, now in chosen:
        slots += [request.slot(position) for position in now]
        texts += [request.text[: position + 1] for position in now]
        positions += [*now]
        previous.append(request.slot(now.start - 1) if now.start else -1)
        past = range(now.start - HISTORY, now.start)
        before.append([request.slot(position) if position >= 0 else -1 for position in past])
        bounds.append(len(slots))
    engine.written += sum(bool(messages_of(text, [0.0] * len(text), written=True)[-1]) for text in texts)
    engine.depths += depths(bounds, slots, previous)
    padding = random.randint(0 if texts else 1, 2)
    for request, _ in chosen:
        if request.computed == len(request.text):
            engine.release(request)
            waiting.remove(request)
    values = [[value_of(text, column) for column in range(len(COLUMNS))] for text in texts]
    wanted = [[expected(text, column) for column in range(len(COLUMNS))] for text in texts]
    values += [[0.5] * len(COLUMNS)] * padding
    wanted += [[0.5 if strategy == TOKEN else torch.nan for strategy in COLUMNS]] * padding
    found = Sequences(
        torch.tensor(bounds),
        torch.tensor([*slots, *[random.randint(-1, 3) for _ in range(padding)]]),
        torch.tensor(before).reshape(-1, HISTORY),
        torch.ones(len(before), dtype=torch.bool),
    )
    positions += [random.randint(0, 9) for _ in range(padding)]
    ids = [*[text[-1] for text in texts], *[random.randint(0, 1) for _ in range(padding)]]
    return books.read(values, ids, positions, found, engine.looks), torch.tensor(wanted)


@settings(derandomize=True, deadline=None, max_examples=40, phases=(Phase.generate, Phase.shrink))
@given(st.randoms(use_true_random=False), st.integers(3, 16), st.booleans())
def test_every_token_reads_what_its_whole_text_says(random: Random, blocks: int, looks: bool) -> None:
    engine, store = Engine(random, list(range(blocks)), looks), Books()
    store.states.reserve(0 if looks else blocks * BLOCK)
    store.turns.reserve(0 if looks else blocks * BLOCK)
    longest = min(12, blocks * BLOCK)
    waiting: list[Request] = []
    for _ in range(12):
        if len(waiting) < 3:
            waiting += asked(random, random.randint(1, 5), longest)
        got, wanted = step(engine, waiting, store)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_question_cut_into_messages_is_one() -> None:
    """Of one side, until the other has had the word; a mean is of the newest message alone."""
    opened, half = [1, 1], [9] * 3
    whole = [9, *opened, *half, *half]
    cut, answered = [9, *opened, *half, *opened, *half], [9, *opened, *half, 1, 0, 5, *opened, *half]
    strategies = (Rise(0.5, written=False), MessageMean(2, written=False))

    def last(ids: list[int]) -> list[float]:
        values = [[0.0 if token == 9 else 1.0] * 2 for token in ids]
        links = link(torch.arange(len(ids)), sequences([0, len(ids)], range(len(ids)), [-1]), looks=True)
        turns = TurnFinder(OPENINGS, CPU).find(torch.tensor(ids), links)
        found: list[float] = RunningStates(strategies, CPU).extend(torch.tensor(values), links, turns)[-1].tolist()
        return found

    assert last(cut)[0] == last(whole)[0] == pytest.approx(1 / (1 + 6 * 0.5))
    assert last(answered)[0] == pytest.approx(1 / (1 + 3 * 0.5))
    assert last(cut)[1] == last(answered)[1] > last(whole)[1]


def test_the_imitated_engine_shares_and_evicts() -> None:
    """Positive control: prefixes are shared across passes and within one, in chains, and texts are forgotten."""
    random = Random(4)
    engine, store = Engine(random, list(range(16))), Books()
    waiting: list[Request] = []
    for _ in range(80):
        if len(waiting) < 3:
            waiting += asked(random, 5, 12)
        got, wanted = step(engine, waiting, store)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert {0, 1, 2, 3} <= set(engine.depths)
    assert engine.forgotten > 20
    assert engine.written > 20, "answers were told from questions"
