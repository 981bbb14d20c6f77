"""Which model an artifact belongs to, and the refusal of every other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guards.artifact.identity import file_sha256, identify, refuse_mismatch
from guards.artifact.manifest import ModelIdentity
from guards.artifact.store import read_artifact
from guards.errors import ArtifactMismatchError, UnsupportedModelError
from guards.inside.transformers.sites import find_sites
from guards.model.rendering import template_sha256
from guards.model.weights import weights_sha256
from tests.guards.samples import IDENTITY, write
from tests.models import tiny_model

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_same_model_is_accepted(tmp_path: Path) -> None:
    refuse_mismatch(read_artifact(write(tmp_path / "sums")), IDENTITY)


OTHERS: dict[str, Any] = {
    "architecture": "OPTForCausalLM",
    "layers": 4,
    "d_model": 32,
    "d_ff": 48,
    "dtype": "bfloat16",
    "tokenizer_sha256": "11" * 32,
    "weights_sha256": "00" * 32,
    "quantization": "compressed-tensors",
}


def test_every_field_is_tried() -> None:
    assert set(OTHERS) == set(ModelIdentity.model_fields)


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_another_model_is_refused_by_field(tmp_path: Path, field: str) -> None:
    live = IDENTITY.model_copy(update={field: OTHERS[field]})
    with pytest.raises(ArtifactMismatchError, match=rf"\({field}: model has '?{OTHERS[field]}"):
        refuse_mismatch(read_artifact(write(tmp_path / "sums")), live)


def test_every_wrong_field_is_listed(tmp_path: Path) -> None:
    live = IDENTITY.model_copy(update=OTHERS)
    with pytest.raises(ArtifactMismatchError) as refusal:
        refuse_mismatch(read_artifact(write(tmp_path / "sums")), live)
    assert all(f"{field}: model has" in str(refusal.value) for field in OTHERS)


def test_unbound_is_refused_whatever_runs(tmp_path: Path) -> None:
    """Weights unknown on both sides are no agreement."""
    unbound = IDENTITY.model_copy(update={"weights_sha256": None})
    artifact = read_artifact(write(tmp_path / "sums", model=unbound))
    for live in (IDENTITY, unbound):
        with pytest.raises(ArtifactMismatchError, match="is not bound"):
            refuse_mismatch(artifact, live)


def test_a_model_whose_weights_are_unknown_matches_nothing(tmp_path: Path) -> None:
    live = IDENTITY.model_copy(update={"weights_sha256": None})
    with pytest.raises(ArtifactMismatchError, match="weights_sha256: model has None"):
        refuse_mismatch(read_artifact(write(tmp_path / "sums")), live)


def test_calibrated_quantised_is_refused_unquantised_and_in_another_format(tmp_path: Path) -> None:
    quantised = IDENTITY.model_copy(update={"quantization": "fp8"})
    artifact = read_artifact(write(tmp_path / "sums", model=quantised))
    refuse_mismatch(artifact, quantised)
    for live in (IDENTITY, IDENTITY.model_copy(update={"quantization": "gptq"})):
        with pytest.raises(ArtifactMismatchError, match=r"quantization: model has .*, artifact wants 'fp8'"):
            refuse_mismatch(artifact, live)


def test_identify_reads_the_model() -> None:
    model = tiny_model("llama")
    model.config.architectures = ["LlamaForCausalLM"]
    assert identify(model.config, find_sites(model), "float32", "ab" * 32, "cd" * 32) == IDENTITY
    assert identify(SimpleNamespace(architectures=None), find_sites(model), "float32", None, None).architecture == "?"


class TestDigests:
    """What the digests cover."""

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "empty"
        path.touch()
        assert file_sha256(path) == EMPTY_SHA256

    def test_weights_depend_on_every_byte_and_name_and_on_nothing_else(self, tmp_path: Path) -> None:
        first, second = tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"
        first.write_bytes(b"a")
        second.write_bytes(b"b")
        digest = weights_sha256(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert weights_sha256(tmp_path) == digest
        second.write_bytes(b"c")
        changed = weights_sha256(tmp_path)
        assert changed != digest
        second.rename(tmp_path / "model-3.safetensors")
        assert weights_sha256(tmp_path) not in (digest, changed)

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(b"a")
        with pytest.raises(UnsupportedModelError, match=r"no \.safetensors file"):
            weights_sha256(tmp_path)

    def test_a_template(self) -> None:
        assert template_sha256(None) is None
        assert template_sha256("") == EMPTY_SHA256
        assert template_sha256("a") != template_sha256("b")
