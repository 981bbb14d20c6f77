"""MMLU by lm_eval's log-likelihoods: behind a guard as on vLLM's own server, but for what the guard withholds.

    python -m benchmarks.likelihoods --model DIR --artifacts FOLDER [FOLDER ...] [--subjects NAME ...] [--limit N]
        [--work DIR] [FLAGS OF vLLM]

The same lm_eval command (`benchmarks/lm_eval/skillguard_mmlu_choices.yaml`: no shots, the letter of a choice) is run
against `vllm serve`, `skillguard serve --engine vllm` and `skillguard serve`. Flags that are not listed here go to both
that run vLLM. Items are of MMLU's test half, which nothing was chosen on.

A row is a server and a subject, or all: what lm_eval found right; `withheld`, the items of which no choice was told;
and over those of which all were, `told`, what is right there and on vLLM itself, on how many both take the same choice,
and the largest difference of a choice's log-likelihood. The last line printed is one JSON object, as in
benchmarks/results/likelihoods.json.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.clients.environments import python_for
from benchmarks.clients.registry import chosen
from benchmarks.prompts.splits import Split, Values, data_folder, rows
from benchmarks.serving import ROOT, running, running_server
from guards.calibration.sources import seeded_rank

TASK = "skillguard_mmlu_choices"
SUBJECTS = ("elementary_mathematics", "high_school_mathematics", "marketing", "sociology", "world_religions")
LIMIT = 30
VLLM = "vllm serve"
ALL = "all"
WITHHELD = -9999.0
"""What lm_eval is told of a choice, a token, where a guard withholds it."""


@dataclass(frozen=True)
class Item:
    """One question as lm_eval kept it. `told_C`: the log-likelihoods of the choices, None where it is withheld."""

    subject: str
    right: bool
    told_C: tuple[float | None, ...]

    @property
    def taken(self) -> int | None:
        """The likeliest choice, None where some are withheld."""
        told = [each for each in self.told_C if each is not None]
        return self.told_C.index(max(told)) if len(told) == len(self.told_C) else None


def items(samples: Sequence[dict[str, Any]]) -> list[Item]:
    """lm_eval's samples, in the order of the data."""

    def told(choice: Sequence[Any]) -> float | None:
        value = float(choice[0][0])
        return None if value <= WITHHELD else value

    ordered = sorted(samples, key=lambda each: int(each["doc_id"]))
    return [
        Item(each["doc"]["subject"], bool(each["acc"]), tuple(told(choice) for choice in each["resps"]))
        for each in ordered
    ]


def table(found: dict[str, list[Item]]) -> list[dict[str, Any]]:
    """A row for each server and subject. `found`: the same items by server, vLLM's own first."""
    made, itself = [], found[VLLM]
    for server, asked in found.items():
        for subject in (*dict.fromkeys(each.subject for each in asked), ALL):
            pairs = [pair for pair in zip(asked, itself, strict=True) if subject in (ALL, pair[0].subject)]
            told = [(here, there) for here, there in pairs if here.taken is not None]
            apart = [
                abs(one - other)
                for here, there in told
                for one, other in zip(here.told_C, there.told_C, strict=True)
                if one is not None and other is not None
            ]
            made.append(
                {
                    "server": server,
                    "subject": subject,
                    "items": len(pairs),
                    "right": sum(here.right for here, _ in pairs),
                    "withheld": sum(set(here.told_C) == {None} for here, _ in pairs),
                    "told": len(told),
                    "right_of_told": sum(here.right for here, _ in told),
                    "vllm_right_of_told": sum(there.right for _, there in told),
                    "same_choice": sum(here.taken == there.taken for here, there in told),
                    "largest_difference": max(apart, default=None),
                }
            )
    return made


def asked_items(data: Path, subjects: Sequence[str], limit: int) -> list[Values]:
    """At most `limit` of each subject, drawn by the text. Raises SystemExit for a subject that MMLU has not."""
    found: list[Values] = []
    for subject in subjects:
        own = [row for row in rows(data, "mmlu", Split.TEST) if row["subject"] == subject]
        if not own:
            raise SystemExit(f"--subjects: got {subject!r}, wanted subjects of MMLU such as {', '.join(SUBJECTS)}")
        drawn = seeded_rank([row["question"] for row in own], 0)[:limit]
        found += [own[index] for index in sorted(drawn)]
    return found


def evaluate(url: str, model: Path, python: Path, folder: Path) -> list[Item]:
    """What lm_eval finds at a server. `folder` holds mmlu/mmlu_test.jsonl. Raises SystemExit where it fails."""
    told = f"model={model.name},base_url={url}/v1/completions,max_retries=1,num_concurrent=4,tokenizer={model}"
    out = tempfile.mkdtemp(dir=folder)
    command = [str(python), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", told]
    options = ["--tasks", TASK, "--include_path", str(ROOT / "benchmarks" / "lm_eval"), "--output_path", out]
    done = subprocess.run([*command, *options, "--log_samples"], cwd=folder, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"lm_eval: {done.stderr.strip()[-600:]}")
    (file,) = Path(out).rglob("samples_*.jsonl")
    return items([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


@contextmanager
def vllm_server(model: Path, flags: Sequence[str]) -> Iterator[str]:
    """vLLM's own server, until its application is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--host", "127.0.0.1", "--port", port, "--model", str(model), "--served-model-name", model.name]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *where, *flags]

    def up(line: str) -> str | None:
        return f"http://127.0.0.1:{port}" if "Application startup complete" in line else None

    with running(command, up) as url:
        yield url


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--artifacts", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, metavar="NAME", help="subjects of MMLU")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"items of a subject (default {LIMIT})")
    parser.add_argument("--work", type=Path, default=report.UNFINISHED / "clients", help="keeps lm_eval's environment")
    args, flags = parser.parse_known_args(arguments)
    model, guards = args.model.resolve(), [str(each.resolve()) for each in args.artifacts]
    (client,) = chosen(["lm_eval"])
    python = python_for(client, args.work.resolve())
    served = ("--model", str(model), "--served-name", model.name, "--artifacts", *guards)
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        VLLM: partial(vllm_server, model, flags),
        "skillguard serve --engine vllm": partial(running_server, "--engine", "vllm", *served, *flags),
        "skillguard serve": partial(running_server, *served),
    }
    asked = asked_items(data_folder(), args.subjects, args.limit)
    found: dict[str, list[Item]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "mmlu", "mmlu_test.jsonl")
        data.parent.mkdir()
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked), encoding="utf-8")
        for name, start in servers.items():
            with start() as url:
                found[name] = evaluate(url, model, python, Path(folder))
    made = table(found)
    for row in made:
        print(
            f"{row['server']:32} {row['subject']:24} {row['right']:4} of {row['items']:4}, {row['withheld']:3} withheld"
        )
    guarded = [Path(each).name for each in guards]
    report.publish("likelihoods", made, model=model.name, guards=guarded, vllm=list(flags))


if __name__ == "__main__":
    main()
