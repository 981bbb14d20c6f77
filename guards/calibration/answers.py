"""What a model answers to prompts, kept in a file, so that none is written twice."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Activations, TokenIds
from guards.errors import DataError

AT_A_TIME = {"cpu": 32, "cuda": 512}
"""Prompts that are answered before the file is written."""


def _key(identity: ModelIdentity, prompt: TokenIds, tokens: int) -> str:
    """Of all that decides an answer."""
    parts = [identity.weights_sha256, identity.dtype, identity.quantization, tokens, prompt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path) -> dict[str, TokenIds]:
    """Answers by key; a last line that was cut off is cut off the file too. Raises DataError for any other."""
    if not file.exists():
        return {}
    whole, _, rest = file.read_bytes().rpartition(b"\n")
    found = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = tuple(map(int, row["answer"]))
        except (ValueError, TypeError, KeyError) as error:
            problem = f"{file}, line {number}: got {line[:60]!r}, wanted a kept answer"
            raise DataError(f"{problem}; name another file, or delete it") from error
    if rest:
        file.write_bytes(whole + b"\n" if whole else b"")
    return found


def _keep(file: Path, answers: Mapping[str, TokenIds]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())


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
    has not are added. Raises DataError, before anything is written, for a file that is none of ours or that cannot be
    written to.
    """
    if file is None:
        return model.write(prompts, tokens, advance)
    with _named(file):
        kept = _read(file)
        _keep(file, {})
    keys = [_key(model.identity, prompt, tokens) for prompt in prompts]
    missing = [index for index, key in enumerate(keys) if key not in kept]
    advance(sum(len(prompt) + tokens for prompt in prompts) - sum(len(prompts[i]) + tokens for i in missing))
    step = AT_A_TIME.get(model.device.type, AT_A_TIME["cpu"])
    for start in range(0, len(missing), step):
        some = missing[start : start + step]
        answers = model.write([prompts[index] for index in some], tokens, advance)
        new = {keys[index]: answer for index, answer in zip(some, answers, strict=True)}
        with _named(file):
            _keep(file, new)
        kept |= new
    return [kept[key] for key in keys]
