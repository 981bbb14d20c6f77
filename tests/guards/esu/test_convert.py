"""Binding an imported guard to a model: canaries that the model gives again, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guards.artifact.identity import refuse_mismatch
from guards.artifact.store import read_artifact
from guards.calibration.finished import Calibration
from guards.errors import ArtifactMismatchError, CalibrationError
from guards.esu.convert import ImportOptions, bind, import_esu
from guards.esu.files import read_esu
from guards.inside.transformers.loading import LoadedModel
from guards.methods.cube.guard import CubeFitter
from guards.methods.registry import CUBE, load_guard, method_of
from guards.model.sites import Place, Site
from server.cli.main import main
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements
from tests.models import D_FF, LAYERS

FORGET, RETAIN = sources(60)


def last_keys(loaded: LoadedModel, texts: tuple[str, ...]) -> torch.Tensor:
    """Last-token key vectors of the last layer."""
    found: list[torch.Tensor] = []
    module = loaded.sites.tap(Place(LAYERS - 1, Site.KEY)).module
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0][0, -1:]))
    for text in texts:
        loaded.model(input_ids=torch.tensor([loaded.codec.encode_text(text)]))
    handle.remove()
    return torch.cat(found)


def imported(loaded: LoadedModel, folder: Path, *, alpha: float = 1.2, **changes: Any) -> Calibration:
    """A file as the authors would have made it on this model, imported and not yet bound."""
    fitter = CubeFitter(D_FF)
    fitter.update(last_keys(loaded, FORGET[0].texts))
    cube = fitter.finish(LAYERS - 1, "bare")
    module = f"model.layers.{LAYERS - 1}.mlp.down_proj"
    arrays: dict[str, Any] = {f"{module}/mean": cube.mean_F, f"{module}/std": cube.std_F, f"{module}/k": cube.k}
    path = folder / "forget_sums_llama_3_8b.npz"
    np.savez(path, **arrays)
    identity = loaded.identity.model_copy(update={"weights_sha256": None, **changes})
    return import_esu(read_esu(path), ImportOptions(alpha=alpha, regime="last-token"), identity)


def test_a_bound_guard_is_servable_and_its_canaries_agree(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    bound = bind(imported(loaded, tmp_path), loaded, FORGET, RETAIN)
    bound.save(tmp_path / "sums", "sums")
    artifact = read_artifact(tmp_path / "sums")
    refuse_mismatch(artifact, loaded.identity)
    canaries = artifact.manifest.canaries
    assert {canary.fires for canary in canaries} == {True, False}
    assert method_of(artifact) is CUBE
    assert disagreements(loaded, CUBE, load_guard(artifact), canaries) == []
    assert "the canaries only" in artifact.manifest.calibration.notes[-1]
    assert {source.role for source in artifact.manifest.calibration.sources} == {"forget", "retain"}


@pytest.mark.parametrize(
    "changes", [{"layers": 7}, {"d_model": 8}, {"architecture": "OPTForCausalLM"}, {"dtype": "bfloat16"}]
)
def test_another_model_is_refused_by_field(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = tiny_loaded()
    guard = imported(loaded, tmp_path, **changes)
    with pytest.raises(ArtifactMismatchError, match=rf"{next(iter(changes))}: model has"):
        bind(guard, loaded, FORGET, RETAIN)


def test_examples_that_never_fire_are_refused(tmp_path: Path) -> None:
    """No prompt would show at start that the guard works."""
    loaded = tiny_loaded()
    with pytest.raises(CalibrationError, match="clearly fires"):
        bind(imported(loaded, tmp_path, alpha=1e-3), loaded, FORGET, RETAIN)


@pytest.mark.parametrize(
    "extra",
    [
        ["--model", "somewhere"],
        ["--forget", "a.jsonl"],
        ["--retain", "a.jsonl"],
        ["--model", "somewhere", "--forget", "a.jsonl"],
        ["--forget", "a.jsonl", "--retain", "b.jsonl"],
    ],
)
def test_binding_needs_model_and_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    assert main(["import-esu", "forget_en_llama_3_8b.npz", "--output", str(tmp_path / "out"), *extra]) == 1
    assert "--model, --forget and --retain together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_skill_in_its_name_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.npz"
    arrays: dict[str, Any] = {f"model.layers.1.mlp.down_proj/{name}": np.ones(3) for name in ("mean", "std", "k")}
    np.savez(path, **arrays)
    assert main(["import-esu", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "give --skill" in capsys.readouterr().err
