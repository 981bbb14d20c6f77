"""Which model an artifact belongs to."""

import hashlib
import json
from pathlib import Path
from typing import Any

from guards.artifact.manifest import ModelIdentity
from guards.artifact.store import Artifact
from guards.errors import ArtifactMismatchError
from guards.model.sites import ModelSites


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_TOKENIZER_FILES = ("added_tokens.json", "merges.txt", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tokenizer_sha256(folder: Path) -> str:
    """Digest of the files that turn text into token ids. The chat template has a digest of its own."""
    found = [[name, file_sha256(folder / name)] for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def identify(config: Any, sites: ModelSites, dtype: str, weights: str | None, tokenizer: str | None) -> ModelIdentity:
    """The identity of a loaded transformers model."""
    return ModelIdentity.model_validate(
        {
            "architecture": (config.architectures or ["?"])[0],
            "layers": sites.layers,
            "d_model": sites.d_model,
            "d_ff": sites.d_ff,
            "dtype": dtype,
            "tokenizer_sha256": tokenizer,
            "weights_sha256": weights,
        }
    )


def refuse_mismatch(artifact: Artifact, live: ModelIdentity) -> None:
    """Raises ArtifactMismatchError naming every field in which the artifact's model is not the live one."""
    wanted, got = artifact.manifest.model.model_dump(), live.model_dump()
    if wanted["weights_sha256"] is None:
        raise ArtifactMismatchError(
            f"{artifact.name}: is not bound to a model's weights, so it cannot be verified: "
            "import it again with `model`"
        )
    wrong = [
        f"{key}: model has {got[key]!r}, artifact wants {wanted[key]!r}" for key in wanted if got[key] != wanted[key]
    ]
    if wrong:
        raise ArtifactMismatchError(
            f"{artifact.name}: was calibrated on another model ({'; '.join(wrong)}): calibrate on this one"
        )
