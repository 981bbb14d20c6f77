"""Turns the parameter files that ESU's authors published for Llama-3-8B into guards.

| file | holds, per module | becomes |
|---|---|---|
| Key Space Detection, `down_proj` | `mean`, `std`, `k` of key vectors | a cube with ``tau = alpha * k`` |
| Neuron Adjust, `gate_proj` | `neuron_lst`, `mu1_lst`, `sigma1_lst`, `mu2_lst`, `sigma2_lst` | Gaussians |

Side 1 is retain, side 2 forget. `std` is a sample standard deviation, but both sigmas are variances, the authors'
probe writing E[x^2] - E[x]^2, and are converted here. That their code then fills the forget deviation from the forget
*mean* happens at run time and left no trace in the files.
"""

import hashlib
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from guards.artifact.manifest import ModelIdentity, in_float32
from guards.core.verdict import Scope
from guards.errors import ArtifactError
from guards.esu.unpickle import MAX_BYTES, unpickle_arrays
from guards.methods.cube.guard import Cube, CubeGuard, Regime
from guards.methods.neuron_adjust.guard import Draw, LayerStatistics, NeuronAdjustGuard

Kind = Literal["ksd", "neuron-adjust"]
Table = dict[str, np.ndarray[Any, Any]]

LLAMA_3_8B = ModelIdentity(
    architecture="LlamaForCausalLM",
    layers=32,
    d_model=4096,
    d_ff=14336,
    dtype="bfloat16",
    tokenizer_sha256=None,
    weights_sha256=None,
)
"""What the published files were made on. Which revision of the weights, the files do not say."""

_KSD_FIELDS = {"mean", "std", "k"}
_NA_FIELDS = {"mu1_lst", "sigma1_lst", "mu2_lst", "sigma2_lst", "neuron_lst"}
_MODULE = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.(down_proj|gate_proj)")
_FILE_NAME = re.compile(r"forget_([A-Za-z0-9]+)_(?:retain_.+_)?llama_3_8b")


@dataclass(frozen=True)
class Published:
    """How the authors' scripts make and use a cube: its alpha, which tokens it was fitted on, and of what texts."""

    alpha: float
    regime: Regime
    frame: str
    texts: str


_LANGUAGE = Published(0.06, Regime.ALL_TOKENS, "bare", "MLQA contexts")
PUBLISHED: Mapping[str, Published] = {
    "GSM8K": Published(2.0, Regime.LAST_TOKEN, "Q: {text}\nA:", "GSM8K questions after eight worked examples"),
    "MBPP": Published(1.4, Regime.LAST_TOKEN, "bare", "MBPP task texts"),
    **dict.fromkeys(("ar", "de", "en", "es", "hi", "vi", "zh"), _LANGUAGE),
}
"""Skill in the file's name -> the authors' setting."""


@dataclass(frozen=True)
class EsuFile:
    """A published file, read: arrays by layer. `skill` is the one its name tells, where it does."""

    name: str
    sha256: str
    kind: Kind
    skill: str | None
    layers: Mapping[int, Table]


def read_esu(path: Path) -> EsuFile:
    """Reads a `.npz` or `.pkl`, running nothing in it. Raises ArtifactError saying what, got and wanted."""
    if path.suffix not in (".npz", ".pkl"):
        raise ArtifactError(f"{path}: got a {path.suffix or 'nameless'} file, wanted .npz or .pkl")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ArtifactError(f"{path}: got {size} bytes, wanted at most {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); name a readable .npz or .pkl") from error
    modules = _read_npz(path) if path.suffix == ".npz" else _as_modules(unpickle_arrays(data, str(path)), path)
    layers: dict[int, Table] = {}
    projections = set()
    for module, table in modules.items():
        match = _MODULE.fullmatch(module)
        if match is None:
            raise ArtifactError(f"{path}: got module {module!r}, wanted model.layers.<i>.mlp.down_proj or gate_proj")
        layers[int(match[1])] = table
        projections.add(match[2])
    if len(projections) != 1:
        raise ArtifactError(f"{path}: got modules {sorted(projections)}, wanted one of down_proj and gate_proj")
    kind: Kind = "ksd" if projections == {"down_proj"} else "neuron-adjust"
    wanted = _KSD_FIELDS if kind == "ksd" else _NA_FIELDS
    for layer, table in layers.items():
        if set(table) != wanted:
            raise ArtifactError(f"{path}: layer {layer}: got fields {sorted(table)}, wanted {sorted(wanted)}")
    named = _FILE_NAME.match(path.stem)
    digest = hashlib.sha256(data).hexdigest()
    return EsuFile(path.name, digest, kind, named[1] if named else None, dict(sorted(layers.items())))


def _read_npz(path: Path) -> dict[str, Table]:
    modules: dict[str, Table] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ArtifactError(f"{path}: unpacks to {size} bytes, wanted at most {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                module, _, field = key.rpartition("/")
                modules.setdefault(module, {})[field] = np.asarray(arrays[key])
    except ArtifactError:
        raise
    except Exception as error:  # malformed archives surface as nearly any exception
        raise ArtifactError(f"{path}: not an archive of plain NumPy arrays ({error})") from error
    return modules


def _as_modules(value: object, path: Path) -> dict[str, Table]:
    modules: dict[str, Table] = {}
    for module, table in value.items() if isinstance(value, dict) else ():
        if not isinstance(module, str) or not isinstance(table, dict):
            break
        try:
            modules[module] = {str(field): np.asarray(item) for field, item in table.items()}
        except (ValueError, TypeError, OverflowError) as error:
            raise ArtifactError(f"{path}: {module}: wanted arrays of numbers ({error})") from error
    else:
        if modules:
            return modules
    raise ArtifactError(f"{path}: wanted a dictionary of modules, each a dictionary of arrays")


def _vector(file: EsuFile, layer: int, field: str, length: int | None, *, positive: bool = False) -> Tensor:
    array = file.layers[layer][field]
    where = f"{file.name}: layer {layer}: {field}"
    if array.dtype.kind != "f" or array.ndim != 1 or (length is not None and len(array) != length):
        raise ArtifactError(f"{where}: got {array.dtype} {array.shape}, wanted {length or 'n'} floating-point numbers")
    wrong = ~np.isfinite(array) | ((array <= 0) if positive else False)
    if wrong.any():
        index = int(wrong.argmax())
        raise ArtifactError(
            f"{where}: got {array[index]} at {index}, wanted {'positive' if positive else 'finite'} numbers"
        )
    return torch.from_numpy(array.astype(np.float64))


def _refuse_layers(file: EsuFile, identity: ModelIdentity) -> None:
    beyond = [layer for layer in file.layers if layer >= identity.layers]
    if beyond:
        raise ArtifactError(f"{file.name}: got layer {beyond[0]}, wanted below the model's {identity.layers}")


def cubes(file: EsuFile, alpha: float, regime: Regime, frame: str, identity: ModelIdentity = LLAMA_3_8B) -> CubeGuard:
    """The detector: the authors' k as stored, ``tau = alpha * k``, deviations as published, not floored.

    Raises ArtifactError when an array does not fit the model or is no cube.
    """
    _refuse_layers(file, identity)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ArtifactError(f"got alpha {alpha}, wanted a number above 0")
    found = []
    for layer, table in file.layers.items():
        mean_F = _vector(file, layer, "mean", identity.d_ff)
        std_F = _vector(file, layer, "std", identity.d_ff, positive=True)
        scale = table["k"]
        if scale.ndim != 0 or scale.dtype.kind != "f" or not (np.isfinite(scale) and scale > 0):
            raise ArtifactError(f"{file.name}: layer {layer}: k: got {str(scale)[:40]}, wanted one number above 0")
        k = float(scale)
        for name, number in (("k", k), ("alpha * k", alpha * k)):
            try:
                in_float32(number)
            except ValueError as error:
                raise ArtifactError(f"{file.name}: layer {layer}: {name}: got {number:g}, which {error}") from error
        found.append(Cube(layer, frame, mean_F.float(), std_F.float(), k=k, tau=alpha * k))
    return CubeGuard(tuple(found), Scope.BOTH, regime)


def gaussians(file: EsuFile, draw: Draw, seed: int, identity: ModelIdentity = LLAMA_3_8B) -> NeuronAdjustGuard:
    """The intervention: means as published, deviations as square roots of the variances stored.

    Raises ArtifactError when an array does not fit the model, or a variance is not positive.
    """
    _refuse_layers(file, identity)
    statistics, total = {}, 0
    for layer, table in file.layers.items():
        neurons = table["neuron_lst"]
        if neurons.size == 0:
            continue
        if neurons.dtype.kind not in "iu" or neurons.ndim != 1:
            raise ArtifactError(
                f"{file.name}: layer {layer}: neuron_lst: got {neurons.dtype} {neurons.shape}, wanted indices"
            )
        if neurons.min() < 0 or neurons.max() >= identity.d_ff or len(np.unique(neurons)) != len(neurons):
            raise ArtifactError(f"{file.name}: layer {layer}: wanted distinct neurons below d_ff {identity.d_ff}")
        count = len(neurons)
        forget_S, retain_S = (_vector(file, layer, field, count) for field in ("mu2_lst", "mu1_lst"))
        if bool((forget_S <= retain_S).any()):
            raise ArtifactError(
                f"{file.name}: layer {layer}: got a forget mean (mu2) not above the retain mean (mu1): such a neuron "
                "is never selected, so the sides are exchanged"
            )
        forget_std_S, retain_std_S = (
            _vector(file, layer, field, count, positive=True).sqrt() for field in ("sigma2_lst", "sigma1_lst")
        )
        statistics[layer] = LayerStatistics(
            torch.from_numpy(neurons.astype(np.int64)),
            forget_S.float(),
            forget_std_S.float(),
            retain_S.float(),
            retain_std_S.float(),
        )
        total += count
    if not statistics:
        raise ArtifactError(f"{file.name}: selects no neuron")
    return NeuronAdjustGuard(statistics, total / (identity.layers * identity.d_ff), draw, seed)
