"""What a live model says of an artifact's canaries."""

from collections.abc import Sequence

import torch

from guards.artifact.canaries import disagreement
from guards.artifact.manifest import Canary
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import Reading
from guards.inside.transformers.attach import Attachment
from guards.inside.transformers.loading import LoadedModel
from tests.guards.attached import read


def disagreements(loaded: LoadedModel, method: Method, guard: Guard, canaries: Sequence[Canary]) -> list[str]:
    """What the guard, on this model and by itself, reads otherwise than the canaries say."""
    found = []
    with (
        Attachment(loaded.model, loaded.sites, {"guard": (method, guard)}, loaded.codec.openings) as attachment,
        torch.no_grad(),
    ):
        for canary in canaries:
            readings = read(loaded.model, attachment, torch.tensor([canary.token_ids]))
            reading, scores = Reading(int(readings.codes_RG[-1, 0])), readings.scores["guard"][-1].tolist()
            found.append(
                disagreement(canary, reading, scores, dtype="float32", kind=method.kind, drift=method.drift, alone=True)
            )
    return [problem for problem in found if problem is not None]
