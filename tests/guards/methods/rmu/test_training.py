"""Steps are Adam's on the objective, and a training that was stopped goes on as if it had not been."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.calibration.tuning import Example
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.rmu.checkpoint import binding, keep, kept
from guards.methods.rmu.drawing import batch_of
from guards.methods.rmu.objectives import CosineMisdirection, Misdirection, Objective, random_unit
from guards.methods.rmu.options import CosineOptions
from guards.methods.rmu.training import Schedule, Sides, Step, Training
from tests.guards.tiny import tiny_loaded
from tests.models import D_MODEL, tokens

LAYERS = (0, 1, 2)
UNIT = random_unit(D_MODEL, seed=0)
SIDES = Sides(
    tuple(Example(tuple(tokens(4 + n, seed=n).tolist()), 1) for n in range(5)),
    tuple(Example(tuple(tokens(5 + n, seed=100 + n).tolist()), 0) for n in range(3)),
)
RMU = Misdirection(2, UNIT, c=8.0)
COSINE = CosineMisdirection(2, UNIT)
FIXED = Schedule(steps=4, batch=2, rate=1e-2, alpha=3.0, seed=5)
LEARNED = Schedule(steps=8, batch=2, rate=1e-2, alpha=1.0, alpha_rate=0.1, seed=5)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


def trained(
    loaded: LoadedModel, objective: Objective, schedule: Schedule
) -> tuple[dict[int, Tensor], tuple[Step, ...], float]:
    with loaded.tuned(LAYERS) as tuned:
        training = Training(tuned, objective, SIDES, schedule)
        training.run()
        return _deltas(tuned.deltas), training.history, training.alpha


def _deltas(deltas: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {layer: delta.detach().clone() for layer, delta in deltas.items()}


def _losses(model: LoadedModel, frozen: LoadedModel, step: int) -> tuple[Tensor, Tensor]:
    """RMU's losses on a whole model whose own weights are trained, by hooks of the test's own, example by example."""
    kept: list[Tensor] = []
    found = []
    for name, examples in (("forget", SIDES.forget), ("retain", SIDES.retain)):
        states: list[tuple[Tensor, Tensor]] = []
        for ids, first in batch_of(examples, 2, name, 5, step):
            for each in (model, frozen):
                handle = each.model.model.layers[2].register_forward_hook(lambda _, __, output: kept.append(output))
                each.model(input_ids=torch.tensor([ids]), use_cache=False)
                handle.remove()
            states.append((kept[-2][0, first:], kept[-1][0, first:]))
        h_TD, h0_TD = (torch.cat(parts) for parts in zip(*states, strict=True))
        found.append((h_TD - (8.0 * UNIT if name == "forget" else h0_TD)).square().mean())
    return found[0], found[1]


def test_a_training_is_adam_on_the_three_weights_themselves(loaded: LoadedModel) -> None:
    deltas, history, _ = trained(loaded, RMU, FIXED)
    whole, frozen = tiny_loaded(), tiny_loaded()
    weights = [whole.model.model.layers[layer].mlp.down_proj.weight.requires_grad_() for layer in LAYERS]
    started = [weight.detach().clone() for weight in weights]
    adam = torch.optim.Adam(weights, lr=1e-2)
    for step in range(4):
        forget, retain = _losses(whole, frozen, step)
        assert history[step].forget == pytest.approx(forget.item(), rel=1e-3)
        assert history[step].retain == pytest.approx(retain.item(), rel=1e-3, abs=1e-6)
        assert history[step].alpha == 3.0
        adam.zero_grad()
        torch.autograd.backward(forget + 3.0 * retain)
        adam.step()
    for layer, weight, start in zip(LAYERS, weights, started, strict=True):
        # Adam divides by a gradient's size, which makes much of the last digits of small ones.
        torch.testing.assert_close(deltas[layer], weight.detach() - start, rtol=0.02, atol=5e-4)
    assert history[3].forget < history[0].forget, "positive control: something was learned"


def test_every_example_comes_once_an_epoch() -> None:
    names = "abcde"
    epochs = [[batch_of(names, 5, "x", 1, step)] for step in range(3)]
    assert all(sorted(epoch[0]) == sorted(names) for epoch in epochs)
    assert len({tuple(epoch[0]) for epoch in epochs}) > 1
    overlapping = [name for step in range(5) for name in batch_of(names, 2, "x", 1, step)]
    assert sorted(overlapping) == sorted(names * 2)


def test_the_same_seed_gives_the_same_deltas_and_another_others(loaded: LoadedModel) -> None:
    first, _, alpha = trained(loaded, COSINE, LEARNED)
    again, _, again_alpha = trained(loaded, COSINE, LEARNED)
    other, _, _ = trained(loaded, COSINE, Schedule(**{**vars(LEARNED), "seed": 6}))
    assert all(torch.equal(first[layer], again[layer]) for layer in LAYERS)
    assert alpha == again_alpha != 1.0
    assert not torch.equal(first[2], other[2])


OPTIONS = CosineOptions(steps=8, rate=1e-2, batch=2)


class _KilledError(Exception):
    pass


def test_a_killed_training_resumes_to_the_identical_result(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "state"
    bound = binding(loaded.identity, LAYERS, SIDES, OPTIONS)
    whole, history, alpha = trained(loaded, COSINE, LEARNED)
    assert kept(file, bound, OPTIONS.steps) is None
    with loaded.tuned(LAYERS) as tuned:
        training = Training(tuned, COSINE, SIDES, LEARNED)

        def save_until_killed() -> None:
            done = len(training.history)
            if done == 3:
                keep(file, training.state(), bound)
            if done == 5:
                raise _KilledError

        with pytest.raises(_KilledError):
            training.run(keep=save_until_killed)
    with loaded.tuned(LAYERS) as tuned:
        training = Training(tuned, COSINE, SIDES, LEARNED)
        state = kept(file, bound, OPTIONS.steps)
        assert state is not None
        assert len(state.history) == 3
        training.restore(state)
        training.run()
        assert training.history == history
        assert training.alpha == alpha
        assert all(torch.equal(tuned.deltas[layer], whole[layer]) for layer in LAYERS)
    with loaded.tuned(LAYERS) as tuned:
        training = Training(tuned, COSINE, SIDES, LEARNED)
        training.restore(state)
        for each in training._adam.state.values():
            each["exp_avg"].zero_()
        training.run()
        assert not torch.equal(tuned.deltas[2], whole[2]), "positive control: Adam's moments matter"


def test_a_state_of_another_training_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "state"
    bound = binding(loaded.identity, LAYERS, SIDES, OPTIONS)
    with loaded.tuned(LAYERS) as tuned:
        training = Training(tuned, COSINE, SIDES, LEARNED)
        training.run()
        keep(file, training.state(), bound)
    longer = CosineOptions(steps=80, rate=1e-2, batch=2, checkpoint=file, kept=0.5)
    bound = binding(loaded.identity, LAYERS, SIDES, longer)
    assert kept(file, bound, longer.steps) is not None, "more steps go on from it"
    others = {
        "option rate": binding(loaded.identity, LAYERS, SIDES, CosineOptions(steps=8, rate=2e-2, batch=2)),
        "layers": binding(loaded.identity, (1, 2), SIDES, OPTIONS),
        "examples": binding(loaded.identity, LAYERS, Sides(SIDES.retain, SIDES.forget), OPTIONS),
        "model": binding(loaded.identity.model_copy(update={"dtype": "bfloat16"}), LAYERS, SIDES, OPTIONS),
    }
    for name, other in others.items():
        with pytest.raises(DataError, match=f"the state of another training: got {name}"):
            kept(file, other, OPTIONS.steps)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_state_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(DataError, match=r"name another `checkpoint`, or delete the file"):
        kept(tmp_path / "state", {}, OPTIONS.steps)


def test_a_loss_that_is_not_finite_ends_the_training(loaded: LoadedModel) -> None:
    broken = Misdirection(2, torch.full((D_MODEL,), torch.inf), c=1.0)
    with pytest.raises(CalibrationError, match=r"step 0: got losses \[inf"):
        trained(loaded, broken, FIXED)
