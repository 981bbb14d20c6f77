"""What a model answers to prompts, kept in a file, so that none is written twice."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Activations, TokenIds
from guards.errors import DataError

AT_A_TIME = {"cpu": 32, "cuda": 64}
"""Prompts that are answered before the file is written: as many are lost at a stop."""


def _key(identity: ModelIdentity, prompt: TokenIds, tokens: int) -> str:
    """Of all that decides an answer."""
    parts = [identity.weights_sha256, identity.dtype, identity.quantization, tokens, prompt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _held(file: Path) -> Iterator[BinaryIO]:
    """The file, for reading and appending, and this calibration's alone. Raises DataError."""
    with _named(file):
        opened = file.open("a+b")
    with opened:
        with _named(file):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{file}: another calibration keeps its answers there now; wait for it, or name another file"
                ) from error
        yield opened


def _read(file: Path, opened: BinaryIO) -> dict[str, TokenIds]:
    """Answers by key; a last line that was cut off is cut off the file too. Raises DataError for any other."""
    opened.seek(0)
    data = opened.read()
    whole, found = data.rfind(b"\n") + 1, {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = tuple(map(int, row["answer"]))
        except (ValueError, TypeError, KeyError) as error:
            problem = f"{file}, line {number}: got {line[:60]!r}, wanted a kept answer"
            raise DataError(f"{problem}; name another file, or delete it") from error
    if whole < len(data):
        opened.truncate(whole)
    return found


def _keep(opened: BinaryIO, answers: Mapping[str, TokenIds]) -> None:
    lines = (json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())
    opened.write("".join(lines).encode())
    opened.flush()


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; name another file") from error


def write_answers(
    model: Activations,
    prompts: Sequence[TokenIds],
    tokens: int,
    file: Path | None,
    advance: Callable[[int], object] = lambda _: None,
) -> list[TokenIds]:
    """The model's own answers as `Activations.write` gives them; those that `file` has are taken from it, those that it
    has not are added. Raises DataError, before anything is written, for a file that is none of ours, that cannot be
    written to, or that another calibration has.
    """
    if file is None:
        return model.write(prompts, tokens, advance)
    with _held(file) as opened:
        with _named(file):
            kept = _read(file, opened)
        keys = [_key(model.identity, prompt, tokens) for prompt in prompts]
        missing = [index for index, key in enumerate(keys) if key not in kept]
        advance(sum(len(prompt) + tokens for prompt in prompts) - sum(len(prompts[i]) + tokens for i in missing))
        step = AT_A_TIME.get(model.device.type, AT_A_TIME["cpu"])
        for start in range(0, len(missing), step):
            some = missing[start : start + step]
            answers = model.write([prompts[index] for index in some], tokens, advance)
            new = {keys[index]: answer for index, answer in zip(some, answers, strict=True)}
            with _named(file):
                _keep(opened, new)
            kept |= new
    return [kept[key] for key in keys]
