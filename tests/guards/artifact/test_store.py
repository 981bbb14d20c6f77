"""The artifact format: round trip, atomic writing, files that are not there or not whole, corruption."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from guards.artifact.manifest import Canary, CanaryMessage, ScoreQuantiles
from guards.artifact.store import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_TENSORS_BYTES,
    TENSORS_NAME,
    read_artifact,
    write_artifact,
)
from guards.calibration.entry import Entry
from guards.core.quantiles import quantile_table
from guards.errors import ArtifactError
from guards.methods.registry import CUBE, load_guard, method_of
from tests.guards.samples import CALIBRATION, IDENTITY, cube, cubes, each_entry, files, manifest, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid KSD artifact."""
    return write(tmp_path / "sums")


class TestRoundTrip:
    """What is written is what is read, and the same guard gives the same bytes."""

    @each_entry
    def test_reading_and_writing_again_gives_the_same_bytes(self, tmp_path: Path, entry: Entry) -> None:
        first = write(tmp_path / "first", entry)
        artifact = read_artifact(first)
        parameters, tensors = entry.dump(load_guard(artifact))
        record = artifact.manifest.model_copy(update={"parameters": parameters})
        digest = write_artifact(tmp_path / "second", record, tensors)
        assert files(tmp_path / "second") == files(first)
        assert digest == artifact.digest
        assert method_of(artifact) is entry

    def test_what_was_written_before_quantisation_had_a_name_keeps_its_bytes(self, tmp_path: Path) -> None:
        """The demo's guards lack the key; reading takes it for None, and writing leaves it out again."""
        demo = Path(__file__).parents[3] / "artifacts" / "demo" / "guards" / "ksd-mathematics"
        artifact = read_artifact(demo)
        assert artifact.manifest.model.quantization is None
        assert b'"quantization"' not in files(demo)[MANIFEST_NAME]
        write_artifact(tmp_path / "again", artifact.manifest, artifact.tensors)
        assert files(tmp_path / "again") == files(demo)

    def test_what_was_written_before_there_were_quantiles_keeps_its_bytes(self, tmp_path: Path) -> None:
        for shipped in sorted((Path(__file__).parents[3] / "artifacts").glob("*/guards/*")):
            artifact = read_artifact(shipped)
            if artifact.manifest.calibration.quantiles is None:
                digest = write_artifact(tmp_path / shipped.name, artifact.manifest, artifact.tensors)
                assert digest == artifact.digest
                assert files(tmp_path / shipped.name) == files(shipped)

    def test_quantiles_are_kept_and_looked_at(self, tmp_path: Path) -> None:
        table = quantile_table([1.0, 1.5, 2.0, 4.0])
        record = CALIBRATION.model_copy(update={"quantiles": ScoreQuantiles(examples=4, over_tau=table)})
        folder = write(tmp_path / "sums", calibration=record)
        found = read_artifact(folder).manifest.calibration.quantiles
        assert found == ScoreQuantiles(examples=4, over_tau=table)
        for odd in (table[:-1], table[::-1], (float("nan"), *table[1:])):
            with pytest.raises(ValidationError):
                ScoreQuantiles(examples=4, over_tau=odd)
        with pytest.raises(ValidationError):
            ScoreQuantiles(examples=0, over_tau=table)

    def test_a_seed_is_kept_and_left_out_where_there_is_none(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "sums", calibration=CALIBRATION.model_copy(update={"seed": 7}))
        assert read_artifact(folder).manifest.calibration.seed == 7
        assert b'"seed"' not in files(write(tmp_path / "none", calibration=CALIBRATION))[MANIFEST_NAME]

    def test_quantisation_is_kept(self, tmp_path: Path) -> None:
        quantised = IDENTITY.model_copy(update={"quantization": "compressed-tensors"})
        folder = write(tmp_path / "sums", model=quantised)
        assert b'"quantization": "compressed-tensors"' in files(folder)[MANIFEST_NAME]
        assert read_artifact(folder).manifest.model == quantised

    def test_what_a_canary_was_encoded_from_is_kept(self, tmp_path: Path) -> None:
        """And left out where nothing says it, as in artifacts of before it could be said."""
        known: dict[str, Any] = {"token_ids": (1, 5), "scores": (2.5,), "fires": True}
        messages = (CanaryMessage(role="user", content="a 数"),)
        canaries = (Canary(**known), Canary(**known, text="a\n"), Canary(**known, messages=messages))
        folder = write(tmp_path / "sums", canaries=canaries)
        assert read_artifact(folder).manifest.canaries == canaries
        written = json.loads((folder / MANIFEST_NAME).read_text())["canaries"]
        assert [sorted(canary.keys() - known.keys()) for canary in written] == [[], ["text"], ["messages"]]
        with pytest.raises(ValidationError, match="got messages and text, wanted at most one"):
            Canary(**known, text="a", messages=messages)
        with pytest.raises(ValidationError, match="messages"):
            Canary(**known, messages=())

    def test_the_order_of_tensors_does_not_matter(self, tmp_path: Path) -> None:
        parameters, tensors = CUBE.dump(cubes())
        for name in ("a", "b"):
            write_artifact(tmp_path / name, manifest("ksd", parameters), tensors)
            tensors = dict(reversed(list(tensors.items())))
        assert files(tmp_path / "a") == files(tmp_path / "b")

    def test_the_digest_covers_both_files(self, tmp_path: Path) -> None:
        digests = {
            read_artifact(write(tmp_path / name, guard=cubes(cube(seed=seed, tau=tau)))).digest
            for name, seed, tau in (("a", 0, 3.0), ("b", 1, 3.0), ("c", 0, 3.5))
        }
        assert len(digests) == 3

    def test_the_name_is_the_folders(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert read_artifact(Path(".")).name == "sums"

    def test_a_linked_folder_is_read(self, folder: Path) -> None:
        link = folder.with_name("link")
        link.symlink_to(folder, target_is_directory=True)
        assert read_artifact(link).digest == read_artifact(folder).digest


class TestWriting:
    """Nothing half-written is ever in an artifact's place."""

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_non_finite_tensor_leaves_the_older_artifact(self, folder: Path, bad: float) -> None:
        before = files(folder)
        guard = cubes(cube(seed=9))
        guard.cubes[0].mean_F[3] = bad
        with pytest.raises(ArtifactError, match=r"cube\.0\.mean.*non-finite"):
            write(folder, guard=guard)
        assert files(folder) == before

    def test_a_failing_disk_leaves_the_older_artifact(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        before = files(folder)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write(folder, guard=cubes(cube(seed=9)))
        assert files(folder) == before
        assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]

    def test_an_older_artifact_is_replaced(self, folder: Path) -> None:
        before = files(folder)
        write(folder, guard=cubes(cube(seed=9)))
        assert files(folder) != before
        assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="is no artifact"):
            write(tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_folder_with_another_manifest_is_left_alone(self, folder: Path) -> None:
        """`manifest.json` is a common name; replacing would remove all that lies beside it."""
        (folder / "thesis.tex").write_text("mine")
        with pytest.raises(ArtifactError, match=r"holds an artifact and also 'thesis\.tex'"):
            write(folder)
        assert (folder / "thesis.tex").read_text() == "mine"

    def test_an_unknown_dtype_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"'x': got torch\.float16"):
            write_artifact(tmp_path / "a", manifest("ksd", {}), {"x": torch.zeros(2, dtype=torch.float16)})


class TestFiles:
    """Rules about the two files themselves."""

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="no such folder"):
            read_artifact(tmp_path / "nothing")

    def test_a_file_in_place_of_the_folder(self, folder: Path) -> None:
        with pytest.raises(ArtifactError, match="no such folder"):
            read_artifact(folder / MANIFEST_NAME)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"no file 'manifest\.json'"):
            read_artifact(tmp_path)

    @pytest.mark.parametrize("name", [MANIFEST_NAME, TENSORS_NAME])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=f"no file '{name}'"):
            read_artifact(folder)

    @pytest.mark.parametrize("name", [MANIFEST_NAME, TENSORS_NAME])
    def test_a_folder_or_a_pipe_in_place_of_a_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(ArtifactError, match=f"no file '{name}'"):
            read_artifact(folder)
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        with pytest.raises(ArtifactError, match=f"no file '{name}'"):
            read_artifact(folder)

    @pytest.mark.parametrize("name", [MANIFEST_NAME, TENSORS_NAME])
    def test_a_dangling_link(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("elsewhere")
        with pytest.raises(ArtifactError, match=f"no file '{name}'"):
            read_artifact(folder)

    @pytest.mark.parametrize("name", ["extra.pkl", "weights.pt", "weights.pth", "pytorch_model.bin", "a.npz"])
    def test_a_pickled_file_beside_them(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(ArtifactError, match="never pickled"):
            read_artifact(folder)

    def test_an_oversized_manifest(self, folder: Path) -> None:
        with open(folder / MANIFEST_NAME, "r+b") as file:
            file.truncate(MAX_MANIFEST_BYTES + 1)
        with pytest.raises(ArtifactError, match=f"got {MAX_MANIFEST_BYTES + 1} bytes, wanted at most"):
            read_artifact(folder)

    def test_an_oversized_tensor_file(self, folder: Path) -> None:
        """Sparse, so the four GiB are never on the disk nor in memory."""
        with open(folder / TENSORS_NAME, "r+b") as file:
            file.truncate(MAX_TENSORS_BYTES + 1)
        with pytest.raises(ArtifactError, match="wanted at most"):
            read_artifact(folder)

    @pytest.mark.parametrize("name", [MANIFEST_NAME, TENSORS_NAME])
    @pytest.mark.parametrize("kept", [0, 1, 7, 8, 0.5, -1])
    def test_a_truncated_file(self, folder: Path, name: str, kept: float) -> None:
        data = (folder / name).read_bytes()
        size = int(len(data) * kept) if 0 < kept < 1 else int(kept)
        (folder / name).write_bytes(data[: size if size >= 0 else size - (name == MANIFEST_NAME)])
        with pytest.raises(ArtifactError):
            read_artifact(folder)

    def test_two_artifacts_mixed(self, folder: Path, tmp_path: Path) -> None:
        other = write(tmp_path / "other", guard=cubes(cube(seed=5)))
        (folder / TENSORS_NAME).write_bytes((other / TENSORS_NAME).read_bytes())
        with pytest.raises(ArtifactError, match="belongs to another manifest"):
            read_artifact(folder)


@each_entry
def test_one_corrupt_byte_is_always_refused(tmp_path: Path, entry: Entry) -> None:
    """Five hundred single-byte corruptions of either file, each a bit flip or a random byte: ArtifactError, always."""
    folder = write(tmp_path / "sums", entry)
    originals = files(folder)
    load_guard(read_artifact(folder))  # positive control
    generator = random.Random(0)
    for _ in range(250):
        for name, data in originals.items():
            place = generator.randrange(len(data))
            flipped = data[place] ^ (1 << generator.randrange(8))
            byte = flipped if generator.random() < 0.5 else generator.randrange(256)
            if byte == data[place]:
                continue
            (folder / name).write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            with pytest.raises(ArtifactError):
                load_guard(read_artifact(folder))
            (folder / name).write_bytes(data)
