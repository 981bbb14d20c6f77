"""A running answer's state on the embedded engine, which draws its tokens itself."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engines.answer_state import AnswerState
from server.engines.embedded.processors import Steering
from server.engines.events import PromptToken, TokenLogprob


@dataclass
class EmbeddedAnswerState(AnswerState):
    """The sampler adds `logprobs` and `prompt`; the engine's front counts `delivered`."""

    generator: torch.Generator | None = None
    """Where draws take their numbers from; None for torch's own."""
    tau_P: Tensor | None = None
    """The taus that its policy gives every part, once they were looked up."""
    steering: Steering | None = None
    """Where the request asks for more than temperature and nuclei."""
    stops: frozenset[int] = frozenset()
    """The ids that end this answer."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: dict[int, PromptToken] = field(default_factory=dict)
    """By position, what is told of the prompt's tokens, where that is asked for."""
    delivered: int = 0
    """Tokens handed to the answer's stream, the sentinel included."""
