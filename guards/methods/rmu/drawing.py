"""Draws that are a matter of what they are for, the seed and the step: a resumed training makes the same ones."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

Drawn = TypeVar("Drawn")


def seeded(purpose: str, *of: int) -> torch.Generator:
    """A generator of its own for each purpose and numbers."""
    digest = hashlib.sha256(repr((purpose, *of)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def batch_of(examples: Sequence[Drawn], size: int, purpose: str, seed: int, step: int) -> list[Drawn]:
    """The examples of one step: each comes once an epoch, in another order in every one."""
    count = len(examples)
    drawn = []
    for at in range(step * size, (step + 1) * size):
        epoch, place = divmod(at, count)
        order = torch.randperm(count, generator=seeded(purpose, seed, epoch))
        drawn.append(examples[int(order[place])])
    return drawn
