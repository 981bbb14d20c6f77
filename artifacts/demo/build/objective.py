"""What training minimises: cross-entropy of answers, and a small term for key vectors that tell skills apart.

Models of the size that Key Space Detection was published for separate skills unaided. This one knows the skill
by its second or third layer and, as nothing rewards it, does not carry the difference into the last layer's
keys: trained without the second term, a cube around arithmetic let half of the factual questions in.

Shapes: B examples, T tokens, N answers, M answer tokens, F neurons, V vocabulary, S skills, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from artifacts.demo.build.encoding import Example

_EPSILON = 1e-6


class Batch(NamedTuple):
    """Examples padded on the right, where causal attention never reaches."""

    ids: Tensor
    """B x T."""
    answer: Tensor
    """B x T: whether the token is to be learnt."""
    skill: Tensor
    """N places in `SHARES`, in reading order."""


class Losses(NamedTuple):
    """Both terms, unweighted."""

    answers: Tensor
    within: Tensor


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Tensors for one step."""
    width = max(len(example.ids) for example in examples)
    missing = [width - len(example.ids) for example in examples]
    return Batch(
        torch.tensor([example.ids + [pad] * n for example, n in zip(examples, missing, strict=True)]),
        torch.tensor([example.answer + [False] * n for example, n in zip(examples, missing, strict=True)]),
        torch.tensor([skill for example in examples for skill in example.skills]),
    )


@contextmanager
def last_keys(model: LlamaForCausalLM) -> Iterator[list[Tensor]]:
    """A list that holds the last layer's keys of the latest forward pass."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[:] = inputs[:1]

    handle = model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def losses(model: LlamaForCausalLM, batch: Batch, kept: list[Tensor]) -> Losses:
    """One forward pass; `kept` comes from `last_keys`."""
    hidden_BTD = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    learnt_BT = batch.answer[:, 1:]
    logits_MV = model.lm_head(hidden_BTD[learnt_BT])
    first_BT = learnt_BT & ~batch.answer[:, :-1]
    return Losses(
        nn.functional.cross_entropy(logits_MV, batch.ids[:, 1:][learnt_BT]),
        within_share(kept[0][first_BT], batch.skill),
    )


def within_share(key_NF: Tensor, skill_N: Tensor) -> Tensor:
    """The share of a neuron's variance that lies within skills, not between them, averaged over neurons.

    Differentiable, between 0 (keys depend on the skill alone) and 1 (keys say nothing of the skill).
    """
    member_NS = nn.functional.one_hot(skill_N).to(key_NF.dtype)
    mean_SF = member_NS.T @ key_NF / member_NS.sum(0).clamp_min(1)[:, None]
    within_F = (key_NF - mean_SF[skill_N]).square().mean(0)
    return torch.mean(within_F / (key_NF.var(0, correction=0) + _EPSILON))
