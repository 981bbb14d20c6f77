"""The files that ESU's authors published, where they are present: the figures of the paper's scripts."""

from pathlib import Path

import pytest

from guards.artifact.identity import refuse_mismatch
from guards.artifact.store import read_artifact
from guards.errors import ArtifactMismatchError
from guards.esu.files import LLAMA_3_8B, gaussians, read_esu
from guards.methods.neuron_adjust.guard import Draw, log_density_difference
from guards.methods.registry import load_guard
from server.cli.main import main

pytestmark = pytest.mark.real

TABLE = {
    "GSM8K": (17.112, 34.2),
    "MBPP": (18.453, 25.8),
    "en": (230.3, 13.8),
    "de": (195.7, 11.7),
    "es": (217.6, 13.1),
    "hi": (307.0, 18.4),
    "zh": (243.5, 14.6),
    "vi": (216.1, 13.0),
    "ar": (270.0, 16.2),
}
"""k and tau of the released cubes, as printed."""


@pytest.mark.parametrize("skill", sorted(TABLE))
def test_k_and_tau(shared_data: Path, tmp_path: Path, skill: str) -> None:
    source = shared_data / "esu_llama3_8b" / f"forget_{skill}_llama_3_8b.npz"
    assert main(["import-esu", str(source), "--output", str(tmp_path / "out")]) == 0
    artifact = read_artifact(tmp_path / "out")
    (record,) = artifact.manifest.parameters["cubes"]
    k, tau = TABLE[skill]
    assert record["layer"] == 31
    assert record["k"] == pytest.approx(k, abs=0.05)
    assert record["tau"] == pytest.approx(tau, abs=0.05)
    regime = "last-token" if skill in ("GSM8K", "MBPP") else "all-tokens"
    assert artifact.manifest.parameters["regime"] == regime
    assert artifact.manifest.skill == skill.lower()


def test_an_imported_artifact_cannot_be_served_yet(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "esu_llama3_8b" / "forget_GSM8K_llama_3_8b.npz"
    main(["import-esu", str(source), "--output", str(tmp_path / "out")])
    artifact = read_artifact(tmp_path / "out")
    assert artifact.manifest.canaries == ()
    with pytest.raises(ArtifactMismatchError, match="not bound to a model's weights"):
        refuse_mismatch(artifact, LLAMA_3_8B.model_copy(update={"weights_sha256": "ab" * 32}))


@pytest.mark.parametrize(
    ("stem", "neurons", "negative"),
    [
        ("forget_GSM8K_retain_MBPP_llama_3_8b_3dot0_percent", 13_763, 9_101),
        ("forget_MBPP_retain_GSM8K_llama_3_8b_3dot0_percent", 13_763, 7_922),
        ("forget_en_retain_non_en_llama_3_8b_0dot5_percent", 2_294, 1_667),
    ],
)
def test_neuron_adjust(shared_data: Path, stem: str, neurons: int, negative: int) -> None:
    """One neuron above the stated share: the authors take all at or above a threshold."""
    guard = gaussians(read_esu(shared_data / "esu_llama3_8b" / f"{stem}.npz"), Draw.CERTAIN, 0)
    layers = guard.layers_statistics.values()
    assert sum(layer.neurons_S.numel() for layer in layers) == neurons
    assert sum(int((layer.forget_mean_S < 0).sum()) for layer in layers) == negative
    share = 0.03 if "3dot0" in stem else 0.005
    assert neurons == int(share * 32 * 14336) + 1
    for layer in layers:  # the forget mean looks like forget text for nearly every neuron
        difference = log_density_difference(layer.forget_mean_S[None], layer)
        assert float((difference <= 0).float().mean()) > 0.5


@pytest.mark.parametrize("stem", ["forget_GSM8K_llama_3_8b", "forget_en_retain_non_en_llama_3_8b_0dot5_percent"])
def test_pickle_and_archive_give_the_same_tensors(shared_data: Path, tmp_path: Path, stem: str) -> None:
    tensors = []
    for suffix in (".npz", ".pkl"):
        output = tmp_path / suffix[1:]
        assert main(["import-esu", str(shared_data / "esu_llama3_8b" / (stem + suffix)), "--output", str(output)]) == 0
        artifact = read_artifact(output)
        load_guard(artifact)
        tensors.append(artifact.manifest.tensors_sha256)
    assert tensors[0] == tensors[1]
