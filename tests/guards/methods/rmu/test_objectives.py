"""The losses are the papers' formulas, written out token by token."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from guards.methods.rmu.objectives import (
    AdaptiveMisdirection,
    CosineMisdirection,
    Misdirection,
    Objective,
    ProbeSuppression,
    random_unit,
)
from guards.methods.rmu.probes import fit_probe

T, D = 5, 8
GENERATOR = torch.Generator().manual_seed(0)
BEFORE = {layer: torch.randn(T, D, generator=GENERATOR) for layer in (1, 2)}
AFTER = {layer: torch.randn(T, D, generator=GENERATOR) for layer in (1, 2)}
UNIT = random_unit(D, seed=4)


def distance(a: Tensor, b: Tensor) -> float:
    """Squared, over entries."""
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / D


def cosine(a: Tensor, b: Tensor) -> float:
    product = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def length(a: Tensor) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in a))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


PROBES = {1: torch.randn(D, generator=GENERATOR), 2: torch.randn(D, generator=GENERATOR)}
FORMULAS: dict[str, tuple[Objective, float, float]] = {
    "rmu": (
        Misdirection(2, UNIT, c=6.5),
        mean([distance(h, 6.5 * UNIT) for h in AFTER[2]]),
        mean([distance(h, h0) for h, h0 in zip(AFTER[2], BEFORE[2], strict=True)]),
    ),
    "adaptive": (
        AdaptiveMisdirection(2, UNIT, beta=5.0),
        mean([distance(h, 5 * length(h0) * UNIT) for h, h0 in zip(AFTER[2], BEFORE[2], strict=True)]),
        mean([distance(h, h0) for h, h0 in zip(AFTER[2], BEFORE[2], strict=True)]),
    ),
    "cosine": (
        CosineMisdirection(2, UNIT),
        mean([1 - cosine(h, UNIT) for h in AFTER[2]]),
        mean([1 - cosine(h, h0) for h, h0 in zip(AFTER[2], BEFORE[2], strict=True)]),
    ),
    "probe": (
        ProbeSuppression(PROBES),
        mean([sum(float(AFTER[layer][e] @ PROBES[layer]) ** 2 for layer in (1, 2)) for e in range(T)]),
        mean([distance(h, h0) for layer in (1, 2) for h, h0 in zip(AFTER[layer], BEFORE[layer], strict=True)]),
    ),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_losses_are_the_formulas(name: str) -> None:
    objective, forget, retain = FORMULAS[name]
    assert float(objective.forget(AFTER, BEFORE)) == pytest.approx(forget, rel=1e-5)
    assert float(objective.retain(AFTER, BEFORE)) == pytest.approx(retain, rel=1e-5)
    assert float(objective.retain(BEFORE, BEFORE)) == pytest.approx(0, abs=1e-6)
    assert objective.layers == ((1, 2) if name == "probe" else (2,))


def test_the_forget_loss_is_zero_where_the_state_is_what_was_asked_for() -> None:
    lengths = BEFORE[2].norm(dim=-1, keepdim=True)
    assert float(Misdirection(2, UNIT, c=6.5).forget({2: 6.5 * UNIT.expand(T, D)}, BEFORE)) == 0
    assert float(AdaptiveMisdirection(2, UNIT, 5.0).forget({2: 5 * lengths * UNIT}, BEFORE)) == 0
    assert float(CosineMisdirection(2, UNIT).forget({2: 5 * lengths * UNIT}, BEFORE)) == pytest.approx(0, abs=1e-6)


def test_a_random_unit_is_one_and_of_its_seed() -> None:
    unit = random_unit(1000, seed=1)
    assert float(unit.norm()) == pytest.approx(1)
    assert torch.equal(unit, random_unit(1000, seed=1))
    assert abs(float(unit @ random_unit(1000, seed=2))) < 0.2
    assert abs(float(unit.mean())) < 0.005, "no side of any entry is likelier"


def test_a_probe_is_the_least_of_its_convex_loss() -> None:
    """That of scikit-learn's regression of the same penalty; of another penalty it is another."""
    generator = torch.Generator().manual_seed(1)
    forget, retain = torch.randn(30, D, generator=generator) + 0.7, torch.randn(40, D, generator=generator)
    x, y = torch.cat([forget, retain]).double().numpy(), [1] * 30 + [0] * 40

    def least(penalty: float) -> Tensor:
        model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=1000).fit(x, y)
        return torch.from_numpy(model.coef_[0]).float()

    probe = fit_probe(forget, retain)
    torch.testing.assert_close(probe, least(1.0), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(probe, least(2.0), rtol=1e-2, atol=1e-2)  # positive control
