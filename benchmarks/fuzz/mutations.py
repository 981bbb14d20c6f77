"""How bytes and JSON are changed: as fuzzers do, by a few steps from something good."""

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "\x00", "\n", "a\u0300" * 40, "\u202e\u2066abc", "\U000e0041\U000e0042", "\ufeff", "\ud800"),
    *("\udfff\ud800", "\U0001f3f3\ufe0f\u200d\U0001f308" * 90, "\u4e2d" * 700, "x" * 5000, "0" * 64, "NaN", "1e400"),
    *("{{ 7 * 7 }}", "{% for a in range(9) %}x{% endfor %}", "<|abstain|>", "<|end|><|assistant|>", "<s>", "[INST]"),
    *("../../etc/passwd", "%s%n", "__class__", "constructor"),
)
ODD_NUMBERS = (
    *(0, -0.0, -1, 1, 2, 0.5, 1e-46, 1e39, 1e308, -1e308),
    *(2**31, 2**31 - 1, 2**53 + 1, 2**63, -(2**63), 10**400),
)
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, *ODD_TEXTS, *ODD_NUMBERS)

Step = Callable[[bytearray, Random], None]


def mutated(data: bytes, dice: Random, fragments: Sequence[bytes] = ()) -> bytes:
    """One to eight steps away. `fragments` are put in as they are."""
    changed = bytearray(data)
    steps = [_flip, _flip, _set, _cut, _repeat, _swap, _number, _end]
    for _ in range(1 + min(7, int(dice.expovariate(0.7)))):
        if fragments and dice.random() < 0.2:
            at = dice.randrange(len(changed) + 1)
            changed[at:at] = dice.choice(fragments)
        else:
            dice.choice(steps)(changed, dice)
    return bytes(changed)


def _at(data: bytearray, dice: Random) -> int:
    return dice.randrange(max(1, len(data)))


def _flip(data: bytearray, dice: Random) -> None:
    if data:
        data[_at(data, dice)] ^= 1 << dice.randrange(8)


def _set(data: bytearray, dice: Random) -> None:
    if data:
        data[_at(data, dice)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))


def _cut(data: bytearray, dice: Random) -> None:
    at = _at(data, dice)
    del data[at : at + dice.choice((1, 2, 8, 64))]


def _repeat(data: bytearray, dice: Random) -> None:
    at = _at(data, dice)
    data[at:at] = data[at : at + dice.choice((1, 4, 16, 64))] * dice.choice((1, 2, 50))


def _swap(data: bytearray, dice: Random) -> None:
    one, other, length = _at(data, dice), _at(data, dice), dice.choice((1, 4, 16))
    piece = data[one : one + length]
    data[other : other + length] = piece


def _number(data: bytearray, dice: Random) -> None:
    at, size = _at(data, dice), dice.choice((2, 4, 8))
    number = dice.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), dice.getrandbits(8 * size)))
    data[at : at + size] = number.to_bytes(size, dice.choice(("little", "big")))


def _end(data: bytearray, dice: Random) -> None:
    del data[_at(data, dice) :]


Places = list[tuple[Any, Any]]


def mutated_json(value: Any, dice: Random) -> Any:
    """A copy, one to four of whose values or names are changed."""
    changed = [copy.deepcopy(value)]
    for _ in range(1 + min(3, int(dice.expovariate(0.9)))):
        within, key = dice.choice(_places(changed))
        match dice.randrange(8):
            case 0 if within is not changed:
                del within[key]
            case 1 if isinstance(within, dict):
                within[dice.choice((str(key) + "x", *(each for each in ODD_TEXTS)))] = within.pop(key)
            case 2:
                within[key] = [within[key]] * dice.choice((0, 1, 2, 40))
            case 3:
                within[key] = {dice.choice(ODD_TEXTS): within[key]}
            case 4 if isinstance(within[key], str):
                at = dice.randrange(len(within[key]) + 1)
                within[key] = within[key][:at] + dice.choice(ODD_TEXTS) + within[key][at:]
            case 5 if isinstance(within[key], int | float) and not isinstance(within[key], bool):
                within[key] = dice.choice((-within[key], within[key] + 1, repr(within[key])))
            case 6:
                other, of = dice.choice(_places(changed))
                within[key] = copy.deepcopy(other[of])
            case _:
                within[key] = copy.deepcopy(dice.choice(ODD_VALUES))
    return changed[0]


def _places(root: list[Any]) -> Places:
    """Every value in it, by what holds it."""
    found: Places = []
    left: list[Any] = [root]
    while left:
        within = left.pop()
        keys = list(within) if isinstance(within, dict) else range(len(within))
        for key in keys:
            found.append((within, key))
            if isinstance(within[key], dict | list):
                left.append(within[key])
    return found
