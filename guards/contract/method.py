"""What a method of making guards is: how its guards are stored, and how they act once bound to a device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guards.artifact.store import Artifact
from guards.contract.guard import BoundDetector, BoundIntervention, Guard
from guards.core.verdict import GuardKind
from guards.model.shard import Shard


@dataclass(frozen=True)
class Method:
    """One entry of the registry."""

    name: str
    kind: GuardKind
    load: Callable[[Artifact], Guard]
    dump: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]]
    bind: Callable[[Any, torch.device, Shard], BoundDetector | BoundIntervention]
