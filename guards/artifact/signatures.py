"""Who vouches for an artifact: Ed25519 signatures beside it, over its digest, which covers both of its files.

What is signed begins with words of its own, so that no signature made for anything else counts here. The folder's name
is not signed: whoever configures a server names its guards. Keys are PEM files, as OpenSSL writes them.
"""

import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from guards.artifact.manifest import Strict, first_problem
from guards.errors import ArtifactError, SigningKeyError

SIGNATURES_NAME = "signatures.json"
MAX_SIGNATURES_BYTES = 64 << 10
MAX_KEY_BYTES = 16 << 10
_PURPOSE = b"skillguard artifact signature, version 1\n"

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Signature(Strict):
    """Of one key. `key` is the public key itself, 32 bytes in hexadecimal, and its name wherever it is shown."""

    key: Hex64
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Signatures(Strict):
    """The whole of `signatures.json`."""

    format: Literal["skillguard-signatures"] = "skillguard-signatures"
    version: Literal[1] = 1
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=16)


def _statement(digest: str) -> bytes:
    return _PURPOSE + bytes.fromhex(digest)


def public_name(key: Ed25519PublicKey) -> str:
    """A public key in hexadecimal."""
    return key.public_bytes_raw().hex()


def parse_signatures(where: Path, data: bytes) -> tuple[Signature, ...]:
    """Raises ArtifactError for a file that is none of ours."""
    try:
        return Signatures.model_validate_json(data).signatures
    except ValidationError as error:
        raise ArtifactError(f"{where}: {first_problem(error)}; sign the artifact again, or remove the file") from error


def refuse_wrong(where: Path, signatures: Sequence[Signature], digest: str) -> None:
    """Raises ArtifactError where one of the signatures is not of this digest, whoever trusts its key."""
    for each in signatures:
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(each.key))
            key.verify(bytes.fromhex(each.signature), _statement(digest))
        except (InvalidSignature, ValueError) as error:
            raise ArtifactError(
                f"{where}: the signature of key {each.key[:16]}... is not of this artifact ({digest[:12]}...): it was "
                "signed before it was changed, or is another's; have it signed again, or remove the file"
            ) from error


def signed(key: Ed25519PrivateKey, digest: str, others: Sequence[Signature]) -> bytes:
    """`signatures.json` with this key's signature of the digest, and those of other keys."""
    mine = Signature(key=public_name(key.public_key()), signature=key.sign(_statement(digest)).hex())
    kept = (mine, *(each for each in others if each.key != mine.key))
    try:
        file = Signatures(signatures=kept)
    except ValidationError as error:
        raise ArtifactError(f"{SIGNATURES_NAME}: {first_problem(error)}; remove the file to begin anew") from error
    return (file.model_dump_json(indent=1) + "\n").encode()


def trusted_by(paths: Collection[Path]) -> frozenset[str] | None:
    """The public keys of PEM files, one of which must have signed; None, which asks for no signature, without files.

    Raises SigningKeyError.
    """
    return frozenset(map(_read_public, paths)) if paths else None


def _read_public(path: Path) -> str:
    try:
        key = serialization.load_pem_public_key(_read_key(path, private=False))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(
            f"{path}: is no public key in PEM form ({error}); `skillguard keygen` writes FILE.pub"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(f"{path}: got a {type(key).__name__}, wanted an Ed25519 key (`skillguard keygen`)")
    return public_name(key)


def read_private(path: Path) -> Ed25519PrivateKey:
    """A private key, which its owner alone may read. Raises SigningKeyError, whose text holds nothing of the file."""
    data = _read_key(path, private=True)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise SigningKeyError(f"{path}: is encrypted; decrypt it where you sign (`openssl pkey`)") from error
    except (ValueError, UnsupportedAlgorithm):
        raise SigningKeyError(f"{path}: is no private key in PEM form; `skillguard keygen` makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: got a {type(key).__name__}, wanted an Ed25519 key (`skillguard keygen`)")
    return key


def _read_key(path: Path, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except OSError as error:
        raise SigningKeyError(
            f"{path}: cannot be read ({error.strerror}); name a readable key, as `skillguard keygen` makes them"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_KEY_BYTES:
            raise SigningKeyError(f"{path}: wanted a regular file of at most {MAX_KEY_BYTES} bytes")
        if private and found.st_mode & 0o077:
            raise SigningKeyError(f"{path}: others may read it (mode {found.st_mode & 0o777:o}); chmod 600 {path}")
        return file.read()


def write_key_pair(path: Path) -> str:
    """Makes a private key (`path`, mode 0600) and its public one (`path`.pub). Returns the public key's name.

    Raises SigningKeyError where one of the files is there already.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    pem = serialization.Encoding.PEM
    private_bytes = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public_bytes = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise SigningKeyError(f"{public}: is there already; choose another name, no key is overwritten")
    for where, data, mode in ((path, private_bytes, 0o600), (public, public_bytes, 0o644)):
        try:
            descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise SigningKeyError(f"{where}: is there already; choose another name, no key is overwritten") from error
        except OSError as error:
            raise SigningKeyError(f"{where}: cannot be written ({error.strerror}); take a writable folder") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    return public_name(key.public_key())
