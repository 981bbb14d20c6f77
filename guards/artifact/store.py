"""The on-disk form of a guard: a folder with `manifest.json`, `tensors.safetensors`, and signatures if there are any.

One validating reader, one atomic writer; `artifacts/README.md` is the specification. No pickle, ever. The same
guard gives the same bytes: keys are sorted and nothing in the file depends on the time or the machine.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from guards.artifact.exchange import open_folder, refuse_strays, replace_file, write_folder
from guards.artifact.manifest import FORMAT_VERSION, NAME, SMALLEST, UNSEALED, Manifest, Strict, first_problem
from guards.artifact.signatures import (
    MAX_SIGNATURES_BYTES,
    SIGNATURES_NAME,
    Signature,
    parse_signatures,
    refuse_wrong,
    signed,
)
from guards.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
TENSORS_NAME = "tensors.safetensors"
MAX_MANIFEST_BYTES = 16 << 20
MAX_TENSORS_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20
"""Of the tensors' names and shapes: thousands. Parsing more than that takes minutes."""
TENSOR_DTYPES = (torch.float32, torch.bfloat16, torch.int64)


Parameters = TypeVar("Parameters", bound=Strict)


@dataclass(frozen=True)
class Artifact:
    """A validated artifact in memory. `digest` covers both files, and `signatures` are right, whoever made them."""

    name: str
    manifest: Manifest
    tensors: dict[str, Tensor]
    digest: str
    signatures: tuple[Signature, ...] = ()

    @property
    def signers(self) -> tuple[str, ...]:
        """The public keys, in hexadecimal, that vouch for the digest."""
        return tuple(each.key for each in self.signatures)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse_tensors(where: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in TENSOR_DTYPES:
            raise ArtifactError(f"{where}: tensor {name!r}: got {tensor.dtype}, wanted one of {TENSOR_DTYPES}")
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{where}: tensor {name!r} holds a non-finite value: calibrate again")


def _manifest_bytes(manifest: Manifest) -> bytes:
    data = manifest.model_dump(mode="json")
    later = [
        (data["model"], "quantization"),
        *((data["calibration"], key) for key in ("quantiles", "seed")),
        *((each, key) for each in data["canaries"] for key in ("messages", "text")),
        *((each, key) for each in data["calibration"]["sources"] for key in ("field", "rows", "repeats", "cut")),
    ]
    for record, key in later:
        if record[key] is None:  # as before there was such a key: readers that lack it refuse the others
            del record[key]
    text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def write_artifact(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> str:
    """Writes an artifact atomically, replacing an older artifact of that name, and returns its digest.

    The digests in `manifest` are filled in here. Raises ArtifactError, with nothing written, when a tensor is not
    finite, or when `folder` exists and holds anything but an artifact, since replacing removes all of it.
    """
    folder = folder.resolve()
    _refuse_tensors(folder, tensors)
    refuse_folder(folder)
    blob = save_tensors({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    manifest = manifest.model_copy(update={"tensors_sha256": _sha256(blob), "manifest_sha256": UNSEALED})
    seal = _sha256(_manifest_bytes(manifest))
    text = _manifest_bytes(manifest.model_copy(update={"manifest_sha256": seal}))
    write_folder(folder, {TENSORS_NAME: blob, MANIFEST_NAME: text})
    return _sha256(text)


def refuse_folder(folder: Path) -> None:
    """Raises ArtifactError when an artifact may not be written here: replacing removes all that a folder holds."""
    _refuse_name(folder.resolve())
    if not folder.exists():
        return
    if not (folder / MANIFEST_NAME).is_file():
        raise ArtifactError(f"{folder} exists and is no artifact: choose another output folder")
    refuse_strays(folder, (MANIFEST_NAME, TENSORS_NAME, SIGNATURES_NAME), "an artifact")


def _refuse_name(folder: Path) -> None:
    """Raises ArtifactError for a name that no guard may have: it is written to logs, labels and lines of text."""
    if not NAME.fullmatch(folder.name):
        raise ArtifactError(
            f"{str(folder)!a}: a guard has its folder's name; wanted at most 64 letters, digits and _ . -, beginning "
            "with a letter or digit: rename the folder"
        )


def _read_bounded(file: BinaryIO, path: Path, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise ArtifactError(f"{path}: got {size} bytes, wanted at most {limit}: this is no artifact")
    try:
        return file.read()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key is given twice among {sorted(keys)[:8]}")
    return dict(pairs)


def _refuse_header(file: BinaryIO, path: Path) -> None:
    """Raises ArtifactError for a header of tensors that is too long to be looked at, or that names one twice.

    Readers of safetensors take one of the two, and not all the same one.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER_BYTES else None
        file.seek(0)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    if header is None:
        raise ArtifactError(f"{path}: got a header of {length} bytes, wanted at most {MAX_HEADER_BYTES}")
    try:
        json.loads(header, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a safetensors file we read ({error}): copy the folder again") from error


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    def refuse_constant(value: str) -> float:
        raise ValueError(f"non-finite number {value}")

    try:
        raw = json.loads(data, parse_constant=refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}): the file is damaged, copy it again") from error
    if not isinstance(raw, dict) or raw.get("format") != "skillguard-artifact":
        raise ArtifactError(f"{path}: wanted a JSON object with format 'skillguard-artifact'")
    version = raw.get("version")
    if type(version) is not int or version != FORMAT_VERSION:  # neither true nor 1.0, which equal 1
        raise ArtifactError(
            f"{path}: got format version {version!r}, wanted {FORMAT_VERSION}: "
            "use the skillguard release that wrote it, or calibrate again"
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}") from error
    got = _sha256(data.replace(manifest.manifest_sha256.encode(), UNSEALED.encode()))
    if got != manifest.manifest_sha256:
        raise ArtifactError(
            f"{path}: got SHA-256 {got[:12]}..., wanted {manifest.manifest_sha256[:12]}...: "
            "the file was edited or is damaged, copy the folder again"
        )
    return manifest


def read_artifact(folder: Path) -> Artifact:
    """Reads and validates an artifact folder; the one way in.

    Beside a writer it gives the older artifact or the newer one, never a mixture. Raises ArtifactError naming what, got
    and wanted, and no other error. The method's own parameters and tensor shapes are
    validated by `guards.methods.registry.load_guard`.
    """
    real = Path(os.path.realpath(folder))
    _refuse_name(real)
    with open_folder(real, (MANIFEST_NAME, TENSORS_NAME), (SIGNATURES_NAME,)) as opened:
        extra = sorted(name for name in opened.names if name.endswith((".pkl", ".pt", ".pth", ".bin", ".npz")))
        if extra:
            raise ArtifactError(f"{folder}: holds {extra[0]!r}; artifacts are never pickled, remove it")
        text = _read_bounded(opened.files[MANIFEST_NAME], folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        manifest = _parse_manifest(folder / MANIFEST_NAME, text)
        digest = _sha256(text)
        signatures: tuple[Signature, ...] = ()
        if (file := opened.files.get(SIGNATURES_NAME)) is not None:
            where = folder / SIGNATURES_NAME
            signatures = parse_signatures(where, _read_bounded(file, where, MAX_SIGNATURES_BYTES))
            refuse_wrong(where, signatures, digest)
        _refuse_header(opened.files[TENSORS_NAME], folder / TENSORS_NAME)
        blob = _read_bounded(opened.files[TENSORS_NAME], folder / TENSORS_NAME, MAX_TENSORS_BYTES)
    got = _sha256(blob)
    if got != manifest.tensors_sha256:
        raise ArtifactError(
            f"{folder / TENSORS_NAME}: got SHA-256 {got[:12]}..., wanted {manifest.tensors_sha256[:12]}...: "
            "the file is damaged or belongs to another manifest, copy the folder again"
        )
    try:
        tensors = load_tensors(blob)
    except (SafetensorError, KeyError) as error:  # KeyError: an element type that torch lacks
        raise ArtifactError(f"{folder / TENSORS_NAME}: not a safetensors file we read ({error})") from error
    _refuse_tensors(folder, tensors)
    return Artifact(real.name, manifest, tensors, digest, signatures)


def sign_artifact(folder: Path, artifact: Artifact, key: Ed25519PrivateKey) -> None:
    """Puts this key's signature of what was read from `folder` beside it, and leaves those of other keys.

    Where another artifact took its place meanwhile, the signature is not of that one, and readers say so.
    """
    data = signed(key, artifact.digest, artifact.signatures)
    replace_file(Path(os.path.realpath(folder)) / SIGNATURES_NAME, data)


def take_tensor(artifact: Artifact, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that must be there with that shape and dtype. Raises ArtifactError saying got and wanted."""
    tensor = artifact.tensors.get(name)
    if tensor is None:
        raise ArtifactError(f"{artifact.name}: no tensor {name!r}; got {sorted(artifact.tensors)[:8]}")
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ArtifactError(
            f"{artifact.name}: tensor {name!r}: got {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} {shape}"
        )
    return tensor


def take_deviations(artifact: Artifact, name: str, width: int) -> Tensor:
    """Standard deviations float32 [width], by which a device can divide. Raises ArtifactError."""
    std_F = take_tensor(artifact, name, (width,), torch.float32)
    if not bool(((std_F >= SMALLEST) & (std_F.reciprocal() >= SMALLEST)).all()):
        raise ArtifactError(
            f"{artifact.name}: {name}: got a standard deviation that is no number above 0, or whose inverse is none, "
            "in float32; calibrate again"
        )
    return std_F


def take_neurons(artifact: Artifact, name: str, count: int, width: tuple[str, int]) -> Tensor:
    """Indices int64 [count], distinct and below `width`, which is given with its name. Raises ArtifactError."""
    neurons_S = take_tensor(artifact, name, (count,), torch.int64)
    if int(neurons_S.min()) < 0 or int(neurons_S.max()) >= width[1] or len(set(neurons_S.tolist())) != count:
        raise ArtifactError(f"{artifact.name}: {name}: wanted distinct indices below {width[0]} {width[1]}")
    return neurons_S


def refuse_extra_tensors(artifact: Artifact, wanted: set[str]) -> None:
    """Raises ArtifactError when the file holds a tensor that the manifest does not account for."""
    extra = sorted(set(artifact.tensors) - wanted)
    if extra:
        raise ArtifactError(f"{artifact.name}: got tensor {extra[0]!r} that the manifest does not describe")


def parse_parameters(artifact: Artifact, kind: type[Parameters]) -> Parameters:
    """The method's own record, validated. Raises ArtifactError naming the field, what was got and wanted."""
    try:
        return kind.model_validate_json(json.dumps(artifact.manifest.parameters))
    except ValidationError as error:
        raise ArtifactError(f"{artifact.name}: parameters.{first_problem(error)}") from error
