"""Mutations that are guided by what of guards/ and server/ they reach: libFuzzer's, by atheris."""

import json
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from random import Random

from benchmarks.fuzz.mutations import mutated, mutated_json
from benchmarks.fuzz.target import Inputs

_SECONDS, _MEGABYTES = 60, 4096


class GuideMissingError(RuntimeError):
    """atheris is not installed."""


def instrumented() -> AbstractContextManager[object]:
    """What is imported of guards/ and server/ while it is open tells of the branches that it takes."""
    try:
        import atheris
    except ImportError as error:
        raise GuideMissingError("--guided needs atheris: pip install -e '.[fuzzing]'") from error
    hooks: AbstractContextManager[object] = atheris.instrument_imports(include=["guards", "server"])
    return hooks


def guide(inputs: Inputs, attempt: Callable[[bytes], object], count: int, seed: int, scratch: Path, ends: Path) -> int:
    """Has `count` inputs tried, what is good first, and says how many were kept to be mutated further.

    An input that crashes Python, takes a minute or 4 GB ends the process at once, with a status that is not 0:
    libFuzzer writes it into `ends`, and says so.
    """
    import atheris

    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, good in enumerate(inputs.good):
        (corpus / f"good-{number}").write_bytes(good)

    def mutator(data: bytes, longest: int, dice: int) -> bytes:
        return mutation(data, longest, Random(dice), inputs, atheris.Mutate)

    options = {
        "atheris_runs": count,
        "seed": seed + 1,  # 0 would be the time
        "max_len": max(4096, *(2 * len(good) for good in inputs.good)),
        "mutate_depth": 1,  # five steps at once, or halves of two inputs, leave little JSON
        "cross_over": 0,
        "timeout": _SECONDS,
        "rss_limit_mb": _MEGABYTES,
        "artifact_prefix": f"{ends}/",
    }
    arguments = ["fuzz", *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(arguments, attempt, custom_mutator=mutator)
    with suppress(SystemExit):  # so its runs end
        atheris.Fuzz()
    signal.setitimer(signal.ITIMER_REAL, 0)  # or libFuzzer would end what comes next as an input that takes too long
    return len([*corpus.iterdir()]) - len(inputs.good)


def mutation(data: bytes, longest: int, dice: Random, inputs: Inputs, fuzzers: Callable[[bytes, int], bytes]) -> bytes:
    """Another input, a step away: JSON changed as JSON, bytes as we change them, or whatever the fuzzer does."""
    kind, content = data[:1], data[1:]
    way, changed = dice.randrange(4), b""
    if way < 2:
        with suppress(ValueError, RecursionError):  # no JSON
            changed = kind + json.dumps(mutated_json(json.loads(content), dice)).encode()
    elif way == 2:
        changed = kind + mutated(content, dice, inputs.fragments)
    return changed if changed and len(changed) <= longest else fuzzers(data, longest)
