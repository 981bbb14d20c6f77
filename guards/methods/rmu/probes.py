"""Logistic probes of last tokens' residual stream, one a layer, for the probe objective.

Suffixes: E examples, D residual width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.errors import CalibrationError
from guards.model.sites import Site


def fit_probe(forget_ED: Tensor, retain_ED: Tensor) -> Tensor:
    """Weights w, float32 [D], of ``p(forget) = sigmoid(w.h + b)``: least log-loss summed over examples plus |w|^2 / 2.

    b is not penalised. Raises CalibrationError where the states are not finite.
    """
    x_ED = torch.cat([forget_ED, retain_ED]).double().numpy()
    if not np.isfinite(x_ED).all():
        raise CalibrationError("a state of the residual stream is not finite in this dtype on this data")
    y_E = np.repeat([1.0, 0.0], [len(forget_ED), len(retain_ED)])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits_E = x_ED @ weights[:-1] + weights[-1]
        value = float(np.sum(np.logaddexp(0, logits_E) - y_E * logits_E) + weights[:-1] @ weights[:-1] / 2)
        error_E = 1 / (1 + np.exp(-np.clip(logits_E, -500, 500))) - y_E
        return value, np.append(x_ED.T @ error_E + weights[:-1], error_E.sum())

    found = minimize(loss, np.zeros(x_ED.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    return torch.from_numpy(found.x[:-1]).float()


def fit_probes(
    model: Activations,
    layers: Sequence[int],
    forget: Sequence[TokenIds],
    retain: Sequence[TokenIds],
    batch_tokens: int | None,
) -> dict[int, Tensor]:
    """A probe of each layer, on the model's device."""
    kept: dict[tuple[int, bool], list[Tensor]] = {(layer, side): [] for layer in layers for side in (True, False)}
    for side, examples in ((True, forget), (False, retain)):

        def consume(layer: int, x_ED: Tensor, _: Tensor, side: bool = side) -> None:
            kept[layer, side].append(x_ED.float().cpu())

        model.stream(Pass(Site.RESIDUAL, tuple(layers), Tokens.LAST, batch_tokens=batch_tokens), examples, consume)
    return {
        layer: fit_probe(torch.cat(kept[layer, True]), torch.cat(kept[layer, False])).to(model.device)
        for layer in layers
    }
