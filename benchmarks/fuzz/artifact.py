"""Mutated artifacts: bytes of any file changed, and manifests and tensors changed under a new seal."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.fuzz.mutations import mutated, mutated_json
from benchmarks.fuzz.target import FindingError, Inputs
from benchmarks.serving import ROOT
from guards.artifact.manifest import UNSEALED
from guards.artifact.signatures import SIGNATURES_NAME, public_name
from guards.artifact.store import MANIFEST_NAME, TENSORS_NAME, read_artifact, sign_artifact
from guards.errors import ArtifactError
from guards.methods.registry import load_guard, method_of
from guards.model.shard import WHOLE

_GUARDS = ROOT / "artifacts" / "demo" / "guards"
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_SIGNER = public_name(_KEY.public_key())
_NAMES = (MANIFEST_NAME, TENSORS_NAME, SIGNATURES_NAME)


class _Kind(NamedTuple):
    """The file that is another, whether the manifest is sealed anew, and whether the signatures are left in."""

    name: str
    sealed: bool
    signed: bool


_KINDS = (
    *(_Kind(name, False, True) for name in _NAMES),
    *(_Kind(name, True, signed) for name in (MANIFEST_NAME, TENSORS_NAME) for signed in (False, True)),
)


@dataclass(frozen=True)
class _Good:
    files: dict[str, bytes]
    digest: str


def _good(of: Path, folder: Path) -> _Good:
    folder.mkdir()
    for name in (MANIFEST_NAME, TENSORS_NAME):
        (folder / name).write_bytes((of / name).read_bytes())
    artifact = read_artifact(folder)
    sign_artifact(folder, artifact, _KEY)
    return _Good({name: (folder / name).read_bytes() for name in _NAMES}, artifact.digest)


@contextmanager
def artifacts(scratch: Path) -> Iterator[Inputs]:
    """A detector and an intervention of the demo, signed, are what mutations start from."""
    goods = [_good(of, scratch / of.name) for of in (_GUARDS / "ksd-mathematics", _GUARDS / "na-mathematics")]
    folder = scratch / "guard"
    folder.mkdir()
    there: dict[str, bytes] = {}

    def mutation(dice: Random) -> bytes:
        number = dice.randrange(len(goods))
        kind, content = _mutate(goods[number], dice)
        return _encoded(number, kind, content)

    def tried(data: bytes) -> str:
        number, kind = divmod(int.from_bytes(data[:1]) % (len(goods) * len(_KINDS)), len(_KINDS))
        good = goods[number]
        files, sealed = _with(good, _KINDS[kind], data[1:])
        for name in _NAMES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
            elif files[name] != there.get(name):
                (folder / name).write_bytes(files[name])
        there.clear()
        there.update(files)
        return _tried(folder, good, sealed, changed=files != good.files)

    good = [_encoded(n, kind, each.files[kind.name]) for n, each in enumerate(goods) for kind in _KINDS]
    yield Inputs(good, mutation, tried)


def _encoded(number: int, kind: _Kind, content: bytes) -> bytes:
    return bytes([number * len(_KINDS) + _KINDS.index(kind)]) + content


def _mutate(good: _Good, dice: Random) -> tuple[_Kind, bytes]:
    if dice.random() < 0.6:
        name = dice.choice(_NAMES)
        return _Kind(name, False, True), mutated(good.files[name], dice)
    if dice.random() < 0.3:
        name, content = TENSORS_NAME, _other_tensors(good.files[TENSORS_NAME], dice)
    else:
        name = MANIFEST_NAME
        content = json.dumps(mutated_json(json.loads(good.files[MANIFEST_NAME]), dice)).encode()
    return _Kind(name, True, dice.random() >= 0.8), content


def _with(good: _Good, kind: _Kind, content: bytes) -> tuple[dict[str, bytes], bool]:
    """The files, and whether they have a seal of their own: what is no JSON has none."""
    files = {**good.files, kind.name: content}
    if not kind.sealed:
        return files, False
    try:
        record = json.loads(files[MANIFEST_NAME])
    except (ValueError, RecursionError):
        return files, False
    if not isinstance(record, dict):
        record = {"": record}
    record["tensors_sha256"] = hashlib.sha256(files[TENSORS_NAME]).hexdigest()
    files[MANIFEST_NAME] = _sealed(record)
    if not kind.signed:
        del files[SIGNATURES_NAME]
    return files, True


def _other_tensors(blob: bytes, dice: Random) -> bytes:
    """Any byte may be another, or a number one that is none in float32."""
    if dice.random() < 0.5:
        return mutated(blob, dice)
    data = bytearray(blob)
    start = 8 + int.from_bytes(blob[:8], "little")
    at = start + 4 * dice.randrange((len(blob) - start) // 4)
    data[at : at + 4] = np.float32(dice.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-45, 3e38))).tobytes()
    return bytes(data)


def _sealed(record: dict[str, object]) -> bytes:
    """As its writer would, whatever the record says."""
    record["manifest_sha256"] = UNSEALED
    text = json.dumps(record, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    return text.replace(UNSEALED.encode(), hashlib.sha256(text).hexdigest().encode())


def _tried(folder: Path, good: _Good, sealed: bool, changed: bool) -> str:
    try:
        artifact = read_artifact(folder)
        guard = load_guard(artifact)
    except ArtifactError as error:
        if not str(error):
            raise FindingError("refused without a word") from error
        return "refused, sealed anew" if sealed else "refused"
    same = artifact.digest == good.digest
    if not same and not sealed:
        raise FindingError("loaded without a new seal")
    if artifact.signers and (not same or artifact.signers != (_SIGNER,)):
        raise FindingError("a signature vouches for what it was not made for")
    taus = method_of(artifact).bind(guard, torch.device("cpu"), WHOLE).taus
    if not all(math.isfinite(tau) and tau > 0 for tau in np.asarray(taus, dtype=np.float32).tolist()):
        raise FindingError(f"taus that decide nothing: {taus}")
    if not same:
        return "loaded, sealed anew"
    return "the same artifact, files differ" if changed else "unchanged"
