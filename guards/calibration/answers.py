"""What a model answers to prompts, kept in a file, so that none is written twice."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Activations, TokenIds
from guards.errors import DataError

AT_A_TIME = 32
"""Prompts that are answered before the file is written."""


def _key(identity: ModelIdentity, prompt: TokenIds, tokens: int) -> str:
    """Of all that decides an answer."""
    parts = [identity.weights_sha256, identity.dtype, identity.quantization, tokens, prompt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path) -> dict[str, TokenIds]:
    """Answers by key; a last line that was cut off is cut off the file too. Raises DataError for any other."""
    if not file.exists():
        return {}
    whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = tuple(map(int, row["answer"]))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{file}, line {number}: got {line[:60]!r}, wanted a kept answer; delete the file"
            ) from error
    return found


def write_answers(
    model: Activations,
    prompts: Sequence[TokenIds],
    tokens: int,
    file: Path | None,
    advance: Callable[[int], object] = lambda _: None,
) -> list[TokenIds]:
    """The model's own answers as `Activations.write` gives them; those that `file` has are taken from it, those that it
    has not are added. Raises DataError for a file that is none of ours or cannot be written.
    """
    if file is None:
        return model.write(prompts, tokens, advance)
    keys = [_key(model.identity, prompt, tokens) for prompt in prompts]
    try:
        kept = _read(file)
        missing = [index for index, key in enumerate(keys) if key not in kept]
        advance(sum(len(prompt) + tokens for prompt in prompts) - sum(len(prompts[i]) + tokens for i in missing))
        with file.open("a", encoding="utf-8") as opened:
            for start in range(0, len(missing), AT_A_TIME):
                some = missing[start : start + AT_A_TIME]
                answers = model.write([prompts[index] for index in some], tokens, advance)
                for index, answer in zip(some, answers, strict=True):
                    kept[keys[index]] = answer
                    opened.write(json.dumps({"key": keys[index], "answer": answer}) + "\n")
                opened.flush()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; name another file") from error
    return [kept[key] for key in keys]
