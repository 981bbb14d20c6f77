"""ESU's published way of abstaining against ours: answered requests a second, the same model and prompts.

    python -m benchmarks.authors --model DIR --artifacts FOLDER [--clients 32] [--rounds 2] [--max-tokens 128]

Their code is made for one evaluation at a time and is written anew here, for measuring only, by what it does: a forward
hook on the last layer's `down_proj` builds the skill's cube from arrays at every call and looks whether the last token
lies in it, `generate` writes the whole answer of one request, and an answer during which the cube was hit is then
replaced by a refusal. Requests wait for each other, and nothing is spent on HTTP. The cube is fitted before anything is
timed, on last tokens of prompts of mathematics.

Ours is `skillguard serve` on both engines with the guard of `--artifacts`, asked over HTTP by so many clients. All
three are up at once and asked in turns, ABBA: a fifth of the prompts ask for mathematics and a fifth are long. Both
write up to `--max-tokens`, greedily; ESU's evaluation writes 256. Each of their rounds is the first ten of the prompts
that ours gets, since they take a second or more each; `ratio` is of requests a second, a median of pairs of
rounds with its bootstrap interval of 95 %. The last line printed is one JSON object, kept in `results/authors.json`.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.load.client import Answer
from benchmarks.load.compare import Ask, Load, alternate, compared
from benchmarks.load.figures import ABSTAINED, requests_per_second
from benchmarks.load.prompts import SHARES, Prompt
from benchmarks.load.servers import VLLM_FLAGS, Setup, skillguard
from benchmarks.report import publish
from benchmarks.serving import ROOT
from guards.calibration.sources import read_source

ALONE = 10
"""Requests of one of their rounds."""
FITTED = 64
THEIRS = "one at a time, refused afterwards"
_REFUSAL = "Sorry, your query is not valid"
_FORGET = ROOT / "artifacts" / "demo" / "data" / "mathematics.calibration.jsonl"


class OneAtATime:
    """A model with an eager hook, asked for one whole answer after the other."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()
        self._down: Any = self._model.model.layers[-1].mlp.down_proj
        self._mean, self._std, self._k = self._fit(read_source(str(_FORGET)).texts[:FITTED])
        self._hit = False
        self._down.register_forward_hook(self._look)

    def _encode(self, text: str) -> Any:
        messages = [{"role": "user", "content": text}]
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    @torch.no_grad()
    def _fit(self, texts: Sequence[str]) -> tuple[Any, Any, float]:
        keys: list[Any] = []
        handle = self._down.register_forward_hook(lambda _, args, __: keys.append(args[0][0, -1].numpy()))
        for text in texts:
            self._model(**self._encode(text))
        handle.remove()
        mean, std = np.mean(keys, axis=0), np.std(keys, axis=0, ddof=1)
        return mean, std, float(np.max(np.abs(np.asarray(keys) - mean) / std))

    def _look(self, module: Any, args: Any, output: Any) -> None:
        key = args[0][:, -1, :]
        mean, std = torch.tensor(self._mean).to(key), torch.tensor(self._std).to(key)
        low, high = mean - self._k * std, mean + self._k * std
        if bool(torch.all((key >= low) & (key <= high))):
            self._hit = True

    @torch.no_grad()
    def answer(self, prompt: Prompt, due: float) -> Answer:
        """The whole answer, or the refusal that takes its place."""
        self._hit = False
        encoded = self._encode(prompt.text)
        written = self._model.generate(**encoded, max_new_tokens=prompt.max_tokens, do_sample=False)
        tokens = written.shape[1] - encoded["input_ids"].shape[1]
        text = self._tokenizer.decode(written[0, -tokens:], skip_special_tokens=True)
        text = _REFUSAL if self._hit else text
        now = time.perf_counter()
        return Answer(prompt.kind, due, now, now, tokens, ABSTAINED if text is _REFUSAL else "stop", 1)

    def ask(self, load: Load) -> Ask:
        """Their round: all requests are there at once, and wait for each other."""

        def one_by_one(seed: int) -> list[Answer]:
            due = time.perf_counter()
            return [self.answer(prompt, due) for prompt in load.prompts(seed)[:ALONE]]

        async def ask(seed: int) -> list[Answer]:
            return await asyncio.to_thread(one_by_one, seed)

        return ask


async def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row."""
    setup = Setup(args.model.resolve(), tuple(each.resolve() for each in args.artifacts))
    load = Load("written", SHARES, 2 * args.clients, args.max_tokens)
    theirs = OneAtATime(setup.model)
    with ExitStack() as stack:
        embedded = stack.enter_context(skillguard(setup, guarded=True))
        on_vllm = stack.enter_context(skillguard(setup, "--engine", "vllm", *VLLM_FLAGS, guarded=True))
        sides = {
            THEIRS: theirs.ask(load),
            "embedded": load.ask(embedded, args.clients),
            "vllm": load.ask(on_vllm, args.clients),
        }
        found = await alternate(sides, args.rounds)
    return [{"clients": args.clients, **compared(found, requests_per_second)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--artifacts", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or servers that were started would stay
    rows = asyncio.run(measure(args))
    found = {"model": args.model.name, "guards": [each.name for each in args.artifacts], "max_tokens": args.max_tokens}
    publish("authors", rows, **found, alone=ALONE, fitted=FITTED)


if __name__ == "__main__":
    main()
