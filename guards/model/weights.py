"""A model's weights, held open from before they are hashed until they are loaded: both are of the same bytes."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from guards.errors import UnsupportedModelError
from guards.model.digests import DigestCache, state_of

_HASHERS = 4
_PIECE_BYTES = 4 << 20
_DESCRIPTORS = Path("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd")
"""Where an open file has a name. A container need not have the second, nor another system than Linux the first."""


class WeightFiles:
    """The `.safetensors` files of a model's folder, each held open. A context manager, which closes them.

    What is done to a file while it is held, by whatever name, `digest` refuses, but for what a program writes through a
    mapping that it made before: its times need not tell.
    """

    def __init__(self, folder: Path, cache: DigestCache | None = None) -> None:
        """Opens them. `cache`: where digests may be known from. Raises UnsupportedModelError where there are none."""
        self._folder, self._cache, self._stopped, self._open = folder, cache, Event(), ExitStack()
        self._files: dict[Path, FileIO] = {}
        self._before: dict[Path, os.stat_result] = {}
        self._digests: dict[Path, Future[str]] = {}
        try:
            for path in sorted(folder.glob("*.safetensors")):
                file = self._files[path] = self._open.enter_context(_open(path))
                self._before[path] = os.fstat(file.fileno())
            if not self._files:
                raise UnsupportedModelError(
                    f"{folder}: got no .safetensors file; convert the model's weights to safetensors"
                )
            pool = ThreadPoolExecutor(max_workers=_HASHERS)
            self._open.callback(pool.shutdown)
            self._open.callback(self._stopped.set)
            self._digests = {path: pool.submit(self._digest, path) for path in self._files}
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what still reads, and closes the files."""
        self._open.close()

    def digest(self) -> str:
        """SHA-256 over the files' names and digests, by name, which have been read since they were opened.

        Of what was loaded too, where that happened before this call. Raises UnsupportedModelError where one changed.
        """
        named = [[path.name, self._digests[path].result()] for path in sorted(self._files)]
        self.require_unchanged()
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def require_unchanged(self) -> None:
        """Raises UnsupportedModelError where a file, or what its name means, is not as it was when it was opened, and
        where there is another: vLLM lists the folder again.
        """
        for path, file in self._files.items():
            held = os.fstat(file.fileno())
            try:
                same = os.path.samestat(os.stat(path), held)
            except FileNotFoundError:
                same = False
            if not same or state_of(held) != state_of(self._before[path]):
                raise UnsupportedModelError(
                    f"{path}: changed while the model was loaded, so nobody knows what runs: start again, and leave "
                    "the folder alone meanwhile"
                )
        if {*self._folder.glob("*.safetensors")} != self._files.keys():
            raise UnsupportedModelError(
                f"{self._folder}: got another set of .safetensors files while the model was loaded, so nobody knows "
                "what runs: start again, and leave the folder alone meanwhile"
            )

    def tensors(self, kind: torch.dtype, where: torch.device) -> dict[str, "StoredTensor"]:
        """Every tensor by name, read when it is asked for, of the files that are held.

        `kind`, `where`: what they will become. Raises UnsupportedModelError where two files have one of a name, OSError
        and SafetensorError where one is damaged.
        """
        found: dict[str, StoredTensor] = {}
        for path, file in self._files.items():
            opened = self._open.enter_context(safe_open(_DESCRIPTORS / str(file.fileno()), "pt"))
            for name in opened.keys():  # noqa: SIM118
                if name in found:
                    raise UnsupportedModelError(f"{path}: holds {name!r}, as another file does; keep one of them")
                found[name] = StoredTensor(opened.get_slice(name), kind, where)
        return found

    def _digest(self, path: Path) -> str:
        real, before = Path(os.path.realpath(path)), self._before[path]
        begun = 0.0 if self._cache is None else self._cache.clock()
        if self._cache is not None and (known := self._cache.get(real, before)) is not None:
            return known
        hashed = hashlib.sha256()
        for piece in self._pieces(path):
            hashed.update(piece)
        digest = hashed.hexdigest()
        if self._cache is not None and state_of(os.fstat(self._files[path].fileno())) == state_of(before):
            self._cache.put(real, before, digest, begun)
        return digest

    def _pieces(self, path: Path) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_PIECE_BYTES))
        file = self._files[path]
        while (count := file.readinto(buffer)) and not self._stopped.is_set():
            yield buffer[:count]
        if self._stopped.is_set():
            raise InterruptedError(f"{path}: was closed")


class StoredTensor:
    """A tensor in a file, as transformers' loader takes one.

    What safetensors gives is the file itself, mapped: a model that kept it would change with the file. So what stays on
    the CPU in the type that it is stored in is copied.
    """

    def __init__(self, stored: Any, kind: torch.dtype, where: torch.device) -> None:
        self._stored, self._kept, self._copies = stored, (kind, torch.float32), where.type == "cpu"

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self._stored[index]
        becomes_another = tensor.is_floating_point() and tensor.dtype not in self._kept
        return tensor.clone() if self._copies and not becomes_another else tensor

    def get_dtype(self) -> str:
        """As safetensors names it."""
        return str(self._stored.get_dtype())

    def get_shape(self) -> list[int]:
        """Of the whole tensor."""
        return [*self._stored.get_shape()]


def weights_sha256(folder: Path, cache: DigestCache | None = None) -> str:
    """See `WeightFiles.digest`."""
    with WeightFiles(folder, cache) as files:
        return files.digest()


def _open(path: Path) -> FileIO:
    """Raises UnsupportedModelError for a pipe, a device or a folder."""
    try:
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise UnsupportedModelError(f"{path}: the weights cannot be loaded ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnsupportedModelError(f"{path}: the weights cannot be loaded (it is no regular file)")
    return file
