"""Which artifacts are taken where the operator says which: by digest, and by signature."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from guards.artifact.pins import ArtifactPath
from guards.artifact.signatures import SIGNATURES_NAME, read_private, trusted_by, write_key_pair
from guards.artifact.store import read_artifact, sign_artifact
from guards.errors import ArtifactError, SigningKeyError, UntrustedArtifactError
from guards.methods.loaded import read_guards
from tests.guards.samples import cube, cubes, replace, seal, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "sums")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public one lies beside it."""
    write_key_pair(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def sign(folder: Path, key: Path) -> None:
    sign_artifact(folder, read_artifact(folder), read_private(key))


def resealed(folder: Path) -> None:
    """What a forger does who can write the folder: another threshold, and digests that agree with it."""
    replace(folder, b'"tau": 3.0', b'"tau": 2.0')
    seal(folder)


class TestPins:
    def test_what_is_written_is_what_is_read(self) -> None:
        for text in ("guards/sums", f"guards/sums@sha256:{'0a' * 32}"):
            assert str(ArtifactPath.parse(text)) == text
        assert ArtifactPath.parse(f"a@b@sha256:{'0a' * 32}") == ArtifactPath(Path("a@b"), "0a" * 32)

    @pytest.mark.parametrize("digest", ["", "0a", "0A" * 32, "0a" * 33, "0a" * 32 + "\n", "g0" * 32])
    def test_a_digest_that_is_none(self, digest: str) -> None:
        with pytest.raises(ValueError, match="wanted FOLDER@sha256:DIGEST"):
            ArtifactPath.parse(f"sums@sha256:{digest}")

    def test_the_pinned_artifact_alone_is_taken(self, folder: Path) -> None:
        pinned = ArtifactPath(folder, read_artifact(folder).digest)
        assert read_guards([pinned])["sums"].pinned
        resealed(folder)
        assert not read_guards([folder])["sums"].pinned, "the control: nothing else finds the forgery"
        with pytest.raises(
            UntrustedArtifactError, match=rf"got sha256:[0-9a-f]{{64}}, and it is pinned to sha256:{pinned.digest}"
        ):
            read_guards([pinned])


class TestSignatures:
    def test_a_trusted_key_opens(self, folder: Path, key: Path) -> None:
        sign(folder, key)
        (name,) = trusted_by([public(key)]) or frozenset()
        guard = read_guards([folder], trusted=trusted_by([public(key)]))["sums"]
        assert guard.signed_by == guard.artifact.signers == (name,)
        assert read_guards([folder])["sums"].signed_by == (), "nobody is trusted where nobody is named"

    def test_unsigned(self, folder: Path, key: Path) -> None:
        assert trusted_by([]) is None
        assert read_guards([folder], trusted=None), "the control"
        with pytest.raises(UntrustedArtifactError, match="got no signature, wanted one of"):
            read_guards([folder], trusted=trusted_by([public(key)]))

    def test_a_pin_takes_no_signatures_place(self, folder: Path, key: Path) -> None:
        with pytest.raises(UntrustedArtifactError, match="no signature"):
            read_guards([ArtifactPath(folder, read_artifact(folder).digest)], trusted=trusted_by([public(key)]))

    def test_an_unknown_key(self, folder: Path, key: Path, tmp_path: Path) -> None:
        write_key_pair(tmp_path / "other")
        sign(folder, tmp_path / "other")
        with pytest.raises(UntrustedArtifactError, match=r"got signatures of [0-9a-f]{16}\.\.\., wanted one of"):
            read_guards([folder], trusted=trusted_by([public(key)]))
        sign(folder, key)
        assert len(read_artifact(folder).signers) == 2, "both are kept"
        assert read_guards([folder], trusted=trusted_by([public(key)]))

    def test_of_another_artifact(self, folder: Path, key: Path, tmp_path: Path) -> None:
        other = write(tmp_path / "other", guard=cubes(cube(seed=9)))
        sign(folder, key)
        shutil.copy(folder / SIGNATURES_NAME, other)
        with pytest.raises(ArtifactError, match="is not of this artifact"):
            read_guards([other])

    def test_a_changed_artifact(self, folder: Path, key: Path) -> None:
        sign(folder, key)
        resealed(folder)
        for trusted in (None, trusted_by([public(key)])):
            with pytest.raises(ArtifactError, match="signed before it was changed"):
                read_guards([folder], trusted=trusted)
        (folder / SIGNATURES_NAME).unlink()
        assert read_guards([folder]), "the control: the forgery itself is well formed"
        with pytest.raises(UntrustedArtifactError):
            read_guards([folder], trusted=trusted_by([public(key)]))

    def test_every_changed_digit_of_the_signature(self, folder: Path, key: Path) -> None:
        sign(folder, key)
        path = folder / SIGNATURES_NAME
        right = path.read_text()
        signature = json.loads(right)["signatures"][0]["signature"]
        for at in range(0, 128, 8):
            digit = "0" if signature[at] != "0" else "1"
            path.write_text(right.replace(signature, signature[:at] + digit + signature[at + 1 :]))
            with pytest.raises(ArtifactError, match="is not of this artifact"):
                read_artifact(folder)

    def test_a_signature_for_something_else(self, folder: Path, key: Path) -> None:
        """The key signed the same digest for another purpose."""
        sign(folder, key)
        bare = read_private(key).sign(bytes.fromhex(read_artifact(folder).digest)).hex()
        path = folder / SIGNATURES_NAME
        record = json.loads(path.read_text())
        record["signatures"][0]["signature"] = bare
        path.write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match="is not of this artifact"):
            read_artifact(folder)

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"format": "skillguard-signatures", "version": 1, "signatures": []}', "x" * (65 << 10)]
    )
    def test_a_file_that_is_none(self, folder: Path, text: str) -> None:
        (folder / SIGNATURES_NAME).write_text(text)
        with pytest.raises(ArtifactError, match=SIGNATURES_NAME):
            read_artifact(folder)

    def test_writing_the_artifact_again_drops_them(self, folder: Path, key: Path) -> None:
        sign(folder, key)
        write(folder, guard=cubes(cube(seed=9)))
        assert read_artifact(folder).signers == ()


class TestKeys:
    def test_the_private_key_is_its_owners(self, key: Path) -> None:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert b"PRIVATE" not in public(key).read_bytes()
        key.chmod(0o640)
        with pytest.raises(SigningKeyError, match="others may read it"):
            read_private(key)

    def test_no_key_is_overwritten(self, key: Path) -> None:
        before = key.read_bytes(), public(key).read_bytes()
        with pytest.raises(SigningKeyError, match="is there already"):
            write_key_pair(key)
        public(key).unlink()
        with pytest.raises(SigningKeyError, match="is there already"):
            write_key_pair(key)
        assert key.read_bytes() == before[0]

    def test_keys_that_are_none(self, key: Path, tmp_path: Path) -> None:
        pem = serialization.Encoding.PEM
        of_rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (tmp_path / "rsa.pub").write_bytes(
            of_rsa.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        os.mkfifo(tmp_path / "pipe", 0o600)
        (tmp_path / "text").write_text("-----BEGIN nothing-----")
        (tmp_path / "text").chmod(0o600)
        for name, message in (
            ("rsa.pub", "wanted an Ed25519 key"),
            ("pipe", "regular file"),
            ("text", "PEM"),
            ("none", "cannot be read"),
        ):
            with pytest.raises(SigningKeyError, match=message):
                trusted_by([tmp_path / name])
        with pytest.raises(SigningKeyError, match="is no public key"):
            trusted_by([key])
        locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
        key.write_bytes(locked)
        with pytest.raises(SigningKeyError, match="is encrypted"):
            read_private(key)
        for name in ("text", "pipe"):
            with pytest.raises(SigningKeyError) as refusal:
                read_private(tmp_path / name)
            assert "BEGIN" not in str(refusal.value)
