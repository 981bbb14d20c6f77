"""Whose words a token is of: what strategies over tokens know of a conversation.

Suffix: T tokens of a forward pass.

A chat template *opens* every message with tokens of its own. A message is *asked* (of the user, the system or a tool)
or *written* (of the model). Messages asked one after another are one side's, and so is an answer. Both are functions of
the tokens so far alone, as keys and values are: whatever chunks, caches and batches a sequence comes in.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Turns(NamedTuple):
    """Bool [T] each.

    `counted`: a token of somebody's text, not of the template's, and not the first of all, at which attention gathers.
    `opens`: a message begins behind this token. `changes`: and it is not of the side of the message before.
    `written`: the token is of an answer, or opens one.
    """

    counted: Tensor
    opens: Tensor
    changes: Tensor
    written: Tensor


def one_message(positions_T: Tensor) -> Turns:
    """Turns of texts without a template: all is asked, in one message."""
    never = torch.zeros_like(positions_T, dtype=torch.bool)
    return Turns(positions_T > 0, never, never, never)
