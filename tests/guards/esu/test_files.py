"""ESU's published form: read, converted, and refused where it is off."""

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guards.artifact.manifest import ModelIdentity
from guards.errors import ArtifactError
from guards.esu import files as esu
from guards.esu.convert import ImportOptions, fewest_vectors, import_esu
from guards.esu.files import PUBLISHED, cubes, gaussians, read_esu
from guards.methods.cube.guard import Regime
from guards.methods.neuron_adjust.guard import Draw

TINY = ModelIdentity(
    architecture="LlamaForCausalLM",
    layers=2,
    d_model=4,
    d_ff=6,
    dtype="float32",
    tokenizer_sha256=None,
    weights_sha256=None,
)
KSD_MODULE = "model.layers.1.mlp.down_proj"
NA_MODULE = "model.layers.0.mlp.gate_proj"

Modules = dict[str, dict[str, Any]]


def ksd_modules(**changes: Any) -> Modules:
    """A cube's tables for the tiny model."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=6).astype("f4"), rng.uniform(0.5, 1, 6).astype("f4")
    return {KSD_MODULE: {"mean": mean, "std": std, "k": 4.5, **changes}}


def na_modules(**changes: Any) -> Modules:
    """Two layers' tables, the second without a neuron; variances 4 and 9."""
    empty = np.zeros(0)
    first = {
        "mu1_lst": np.array([-3.0, 0.0]),
        "sigma1_lst": np.array([4.0, 4.0]),
        "mu2_lst": np.array([-1.0, 2.0]),
        "sigma2_lst": np.array([9.0, 9.0]),
        "neuron_lst": [1, 5],
    }
    second = {**dict.fromkeys(("mu1_lst", "sigma1_lst", "mu2_lst", "sigma2_lst"), empty), "neuron_lst": []}
    return {NA_MODULE: {**first, **changes}, "model.layers.1.mlp.gate_proj": second}


def save(path: Path, modules: Modules) -> Path:
    """The tables in the form that the file's suffix tells."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(modules, protocol=4))
    else:
        arrays: dict[str, Any] = {f"{m}/{field}": item for m, table in modules.items() for field, item in table.items()}
        np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
class TestReading:
    """Both forms give the same tables."""

    def test_a_cube(self, tmp_path: Path, suffix: str) -> None:
        file = read_esu(save(tmp_path / f"forget_MBPP_llama_3_8b{suffix}", ksd_modules()))
        assert (file.kind, file.skill, list(file.layers)) == ("ksd", "MBPP", [1])
        (cube,) = cubes(file, 1.5, Regime.ALL_TOKENS, "bare", TINY).cubes
        wanted = ksd_modules()[KSD_MODULE]
        assert torch.equal(cube.mean_F, torch.from_numpy(wanted["mean"]))
        assert torch.equal(cube.std_F, torch.from_numpy(wanted["std"]))
        assert (cube.layer, cube.k, cube.tau) == (1, 4.5, 6.75)

    def test_gaussians_from_variances(self, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"forget_en_retain_non_en_llama_3_8b_0dot5_percent{suffix}", na_modules())
        file = read_esu(path)
        assert (file.kind, file.skill) == ("neuron-adjust", "en")
        guard = gaussians(file, Draw.CERTAIN, 0, TINY)
        assert guard.layers == (0,)
        layer = guard.layers_statistics[0]
        assert layer.neurons_S.tolist() == [1, 5]
        assert layer.forget_mean_S.tolist() == [-1, 2]
        assert layer.forget_std_S.tolist() == [3, 3]
        assert layer.retain_mean_S.tolist() == [-3, 0]
        assert layer.retain_std_S.tolist() == [2, 2]
        assert guard.fraction == 2 / 12


class TestRefusals:
    """What a file may not hold, one rule each."""

    def import_(self, path: Path, **options: Any) -> None:
        import_esu(read_esu(path), ImportOptions(**options), TINY)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"std": np.array([1, 1, 0, 1, 1, 1.0])}, "std: got 0.0 at 2, wanted positive"),
            ({"std": np.array([1, 1, -2, 1, 1, 1.0])}, "std: got -2.0 at 2"),
            ({"mean": np.array([1, 1, np.nan, 1, 1, 1.0])}, "mean: got nan at 2"),
            ({"mean": np.array([1, 1, np.inf, 1, 1, 1.0])}, "mean: got inf at 2"),
            ({"mean": np.zeros(5)}, r"got float64 \(5,\), wanted 6"),
            ({"mean": np.zeros((6, 1))}, r"got float64 \(6, 1\)"),
            ({"mean": np.zeros(6, dtype=int)}, "got int64"),
            ({"k": 0.0}, "k: got 0.0, wanted one number above 0"),
            ({"k": 1e200}, r"k: got 1e\+200, which is inf in float32"),
            ({"k": 3e38}, r"alpha \* k: got .*e\+38, which is inf in float32"),
            ({"k": 1e-200}, "k: got 1e-200, which is 0 in float32"),
            ({"k": -1.0}, "k: got -1.0"),
            ({"k": math.nan}, "k: got nan"),
            ({"k": np.array([4.5])}, "k: got"),
            ({"steer_vector": np.zeros(6)}, "got fields .*steer_vector"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".npz", ".pkl"])
    def test_a_broken_cube(self, tmp_path: Path, changes: dict[str, Any], complaint: str, suffix: str) -> None:
        path = save(tmp_path / f"forget_MBPP_llama_3_8b{suffix}", ksd_modules(**changes))
        with pytest.raises(ArtifactError, match=complaint):
            self.import_(path)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"sigma2_lst": np.array([9.0, -1e-9])}, "sigma2_lst: got -1e-09 at 1, wanted positive"),
            ({"sigma1_lst": np.array([0.0, 4.0])}, "sigma1_lst: got 0.0 at 0, wanted positive"),
            ({"mu2_lst": np.array([-4.0, 2.0])}, "the sides are exchanged"),
            ({"mu1_lst": np.zeros(3)}, "wanted 2"),
            ({"neuron_lst": np.array([1, 6])}, "distinct neurons below d_ff 6"),
            ({"neuron_lst": np.array([-1, 5])}, "distinct neurons below d_ff 6"),
            ({"neuron_lst": np.array([5, 5])}, "distinct neurons below d_ff 6"),
            ({"neuron_lst": np.array([1.0, 5.0])}, "wanted indices"),
            ({"neuron_lst": np.zeros(0, dtype=int)}, "selects no neuron"),
        ],
    )
    def test_broken_gaussians(self, tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
        path = save(tmp_path / "forget_MBPP_retain_GSM8K_llama_3_8b_3dot0_percent.npz", na_modules(**changes))
        with pytest.raises(ArtifactError, match=complaint):
            self.import_(path)

    @pytest.mark.parametrize(
        ("modules", "complaint"),
        [
            ({}, "wanted a dictionary of modules"),
            ([], "wanted a dictionary of modules"),
            ({"a": 1}, "wanted a dictionary of modules"),
            ({1: {}}, "wanted a dictionary of modules"),
            ({"model.layers.1.mlp.up_proj": {}}, "got module 'model.layers.1.mlp.up_proj'"),
            ({"model.layers.01.mlp.down_proj": {}}, "got module"),
            ({**ksd_modules(), **na_modules()}, "wanted one of down_proj and gate_proj"),
            ({KSD_MODULE: {"mean": [[1], [2, 3]]}}, "wanted arrays of numbers"),
            ({"model.layers.2.mlp.down_proj": ksd_modules()[KSD_MODULE]}, "got layer 2, wanted below the model's 2"),
        ],
    )
    def test_other_tables(self, tmp_path: Path, modules: Modules, complaint: str) -> None:
        with pytest.raises(ArtifactError, match=complaint):
            self.import_(save(tmp_path / "forget_MBPP_llama_3_8b.pkl", modules))

    def test_another_suffix_or_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"got a \.pt file"):
            read_esu(tmp_path / "forget.pt")
        with pytest.raises(ArtifactError, match="No such file"):
            read_esu(tmp_path / "forget.npz")

    def test_objects_in_an_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "forget_MBPP_llama_3_8b.npz"
        arrays: dict[str, Any] = {f"{KSD_MODULE}/mean": np.array([{}], dtype=object)}
        np.savez(path, **arrays)
        with pytest.raises(ArtifactError, match="not an archive of plain NumPy arrays"):
            read_esu(path)

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04N."])
    def test_another_archive(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="not an archive"):
            read_esu(path)

    def test_an_archive_that_unpacks_to_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{KSD_MODULE}/mean.npy", b"\x00" * 100_000)
        monkeypatch.setattr(esu, "MAX_BYTES", 10_000)
        with pytest.raises(ArtifactError, match="unpacks to 100000 bytes"):
            read_esu(path)
        monkeypatch.setattr(esu, "MAX_BYTES", 10)
        with pytest.raises(ArtifactError, match="bytes, wanted at most 10"):
            read_esu(path)

    @pytest.mark.parametrize("shape", ["(99999999999,)", "(2**62, 8)", "__import__('os')"])
    def test_an_array_header_that_lies(self, tmp_path: Path, shape: str) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            lead = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr(f"{KSD_MODULE}/mean.npy", lead + header.encode() + b"\x00" * 8)
        with pytest.raises(ArtifactError, match="not an archive"):
            read_esu(path)


class TestOptions:
    """What a file leaves open, and who says it."""

    @pytest.mark.parametrize("skill", sorted(PUBLISHED))
    def test_the_authors_settings(self, tmp_path: Path, skill: str) -> None:
        file = read_esu(save(tmp_path / f"forget_{skill}_llama_3_8b.npz", ksd_modules()))
        imported = import_esu(file, ImportOptions(), TINY)
        assert imported.guard.cubes[0].tau == pytest.approx(PUBLISHED[skill].alpha * 4.5)  # type: ignore[attr-defined]
        assert imported.record.frames == (PUBLISHED[skill].frame,)

    def test_an_unknown_skill_needs_alpha_and_regime(self, tmp_path: Path) -> None:
        file = read_esu(save(tmp_path / "mine.npz", ksd_modules()))
        for options in ({}, {"alpha": 1.0}, {"regime": "last-token"}):
            with pytest.raises(ArtifactError, match="give `alpha` and `regime`"):
                import_esu(file, ImportOptions(**options), TINY)
        import_esu(file, ImportOptions(alpha=1.0, regime="last-token"), TINY)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
    def test_an_impossible_alpha(self, tmp_path: Path, alpha: float) -> None:
        file = read_esu(save(tmp_path / "forget_en_llama_3_8b.npz", ksd_modules()))
        with pytest.raises(ArtifactError, match="wanted a number above 0"):
            import_esu(file, ImportOptions(alpha=alpha), TINY)

    def test_the_kind_is_checked(self, tmp_path: Path) -> None:
        file = read_esu(save(tmp_path / "forget_en_llama_3_8b.npz", ksd_modules()))
        with pytest.raises(ArtifactError, match="got a ksd file, wanted neuron-adjust"):
            import_esu(file, ImportOptions(kind="neuron-adjust"), TINY)

    def test_neuron_adjust_has_no_alpha(self, tmp_path: Path) -> None:
        file = read_esu(save(tmp_path / "forget_en_llama_3_8b.npz", na_modules()))
        with pytest.raises(ArtifactError, match="no `alpha`"):
            import_esu(file, ImportOptions(alpha=1.0), TINY)


@pytest.mark.parametrize("n", [2, 3, 10, 374, 53_041])
def test_fewest_vectors_inverts_the_bound(n: int) -> None:
    bound = (n - 1) / math.sqrt(n)
    assert fewest_vectors(bound) == n
    assert fewest_vectors(bound * 1.0001) == n + 1 or n > 5000
    assert fewest_vectors(bound * 0.999999) == n
