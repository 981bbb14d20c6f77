"""What the two files may not hold: one refusing test per rule, with the defect in sight."""

import json
import struct
from pathlib import Path

import pytest

from guards.artifact.store import MANIFEST_NAME, TENSORS_NAME, read_artifact
from guards.errors import ArtifactError
from tests.guards.samples import replace, seal, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid KSD artifact."""
    return write(tmp_path / "sums")


class TestManifest:
    """Rules about `manifest.json`."""

    @pytest.mark.parametrize(
        ("old", "new", "complaint"),
        [
            (b'"version": 1', b'"version": 2', "got format version 2, wanted 1"),
            (b'"version": 1', b'"version": "1"', "got format version '1'"),
            (b'"version": 1', b'"version": true', "got format version True"),
            (b'"version": 1', b'"version": 1.0', r"got format version 1\.0"),
            (b'"format": "skillguard-artifact"', b'"format": "other"', "wanted a JSON object with format"),
            (b'"skill": "sums",', b'"skill": "sums", "colour": 3,', "colour: Extra inputs"),
            (b'"skill": "sums",', b'"skill": "sums", "skill": "code",', "a key is given twice"),
            (b'"skill": "sums",', b"", "skill: Field required"),
            (b'"skill": "sums"', b'"skill": 7', "skill: Input should be a valid string"),
            (b'"skill": "sums"', b'"skill": "../sums"', "skill: String should match"),
            (b'"skill": "sums"', b'"skill": "su\xffms"', "not valid JSON"),
            (b'"scope": "both"', b'"scope": "sometimes"', "scope: Input should be"),
            (b'"layers": 3', b'"layers": 3.0', "model.layers"),
            (b'"layers": 3', b'"layers": 0', "model.layers"),
            (b'"d_ff": 24', b'"d_ff": "24"', "model.d_ff"),
            (b'"d_ff": 24', b'"d_ff": 1e400', "model.d_ff"),
            (b'"dtype": "float32"', b'"dtype": "int8"', "model.dtype"),
            (b'"weights_sha256": "abab', b'"weights_sha256": "ABAB', "model.weights_sha256"),
            (b'"high": 0.999', b'"high": NaN', "non-finite number NaN"),
            (b'"high": 0.999', b'"high": Infinity', "non-finite number Infinity"),
            (b'"high": 0.999', b'"high": 1e999', "recall.high"),
            (b'"high": 0.999', b'"high": 1.5', "recall.high"),
            (b'"hits": 19', b'"hits": -1', "recall.hits"),
            (b'"hits": 19', b'"hits": true', "recall.hits"),
            (b'"role": "forget"', b'"role": "both"', r"sources\.0\.role"),
            (b'"fires": true', b'"fires": 1', r"canaries\.0\.fires"),
            (b'"canaries": [', b'"canaries": [{"token_ids": [], "scores": [1], "fires": true},', "token_ids"),
            (b'"method": "ksd"', b'"method": null', "method"),
            (b"{\n", b"[{\n", "not valid JSON"),
        ],
    )
    def test_an_edit_is_refused_by_name(self, folder: Path, old: bytes, new: bytes, complaint: str) -> None:
        path = folder / MANIFEST_NAME
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        with pytest.raises(ArtifactError, match=complaint):
            read_artifact(folder)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"null",
            b'"skillguard-artifact"',
            b"{}",
            b'{"format": "skillguard-artifact"}',
            b"\xff\xfe{\x00}\x00",
            b"[" * 200_000,
            b'{"format": "skillguard-artifact", "version": 1, "parameters": ' + b'{"a":' * 100_000,
            b'{"format": "skillguard-artifact", "version": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_another_document_is_refused(self, folder: Path, text: bytes) -> None:
        (folder / MANIFEST_NAME).write_bytes(text)
        with pytest.raises(ArtifactError):
            read_artifact(folder)

    def test_an_edited_threshold_is_noticed(self, folder: Path) -> None:
        """A flipped digit is still a valid manifest; only the seal can tell."""
        replace(folder, b'"tau": 3.0', b'"tau": 2.0')
        with pytest.raises(ArtifactError, match="was edited or is damaged"):
            read_artifact(folder)
        seal(folder)
        read_artifact(folder)


def tensor_file(header: object, data: bytes = b"") -> bytes:
    """A safetensors file: the header's length, the header as JSON, the data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class TestTensors:
    """Rules about `tensors.safetensors`; the manifest always names the file's true digest."""

    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"\x00" * 8,
            b"\xff" * 64,
            b"\x80\x04N.",
            b"PK\x03\x04" + b"\x00" * 60,
            tensor_file([]),
            tensor_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\x00" * 4),
            tensor_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\x00" * 4),
            tensor_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\x00" * 12),
            tensor_file({"x": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 8]}}, b"\x00" * 8),
            tensor_file({"x": {"dtype": "XX", "shape": [1], "data_offsets": [0, 1]}}, b"\x00"),
            tensor_file({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\x00"),
            tensor_file({"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"\x00"),
            tensor_file({"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"\x00" * 8),
        ],
    )
    def test_another_file_is_refused(self, folder: Path, blob: bytes) -> None:
        (folder / TENSORS_NAME).write_bytes(blob)
        seal(folder)
        with pytest.raises(ArtifactError, match=r"tensor"):
            read_artifact(folder)

    @pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])
    def test_a_non_finite_value_is_refused(self, folder: Path, bits: bytes) -> None:
        path = folder / TENSORS_NAME
        path.write_bytes(path.read_bytes()[:-4] + bits)
        seal(folder)
        with pytest.raises(ArtifactError, match=r"cube\.0\.std' holds a non-finite value"):
            read_artifact(folder)
