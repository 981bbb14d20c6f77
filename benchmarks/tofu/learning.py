"""Teaches a model questions and answers: all weights but the embedding, on answers only, in chats as they are served.

Suffixes: B examples of a batch, T tokens, D the residual stream's width.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.tofu.authors import Asked

_UNLEARNT = -100
"""The label of a token that is not to be written, as in cross_entropy."""
WEIGHTS = "*.safetensors*"


@dataclass(frozen=True)
class Recipe:
    """Everything that, with model and data, decides the weights."""

    epochs: int = 4
    rate: float = 5e-4
    batch: int = 8
    warmup: float = 0.06
    """Share of the steps over which the rate rises; over the others it falls linearly to zero."""
    seed: int = 0


class Example(NamedTuple):
    """A chat as token ids, and from which of them on it is to be written by the model."""

    ids: tuple[int, ...]
    answer: int


def encode(tokenizer: Any, asked: Sequence[Asked]) -> list[Example]:
    """Chats of one turn. Raises SystemExit where template or tokens do not end a prompt where an answer begins."""
    found = []
    for each in asked:
        turn = [{"role": "user", "content": each.question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": each.answer}], tokenize=False)
        if not whole.startswith(prompt):
            raise SystemExit("the model's chat template writes an answer that does not go on from its prompt")
        ids, before = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (whole, prompt))
        if ids[: len(before)] != before:
            raise SystemExit("the model's tokenizer joins an answer's beginning with its prompt's end to one token")
        found.append(Example(ids, len(before)))
    return found


def batches(examples: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """All batches in order: of like length within an epoch, so that little is padded, and shuffled."""
    found: list[list[Example]] = []
    for epoch in range(recipe.epochs):
        draw = random.Random(f"{recipe.seed}/{epoch}")
        shuffled = sorted(draw.sample(list(examples), len(examples)), key=lambda each: len(each.ids))
        of = [shuffled[start : start + recipe.batch] for start in range(0, len(shuffled), recipe.batch)]
        found += draw.sample(of, len(of))
    return found


def leading(examples: Sequence[Example]) -> int:
    """How many tokens all prompts begin with: the template's system prompt and what opens the user's turn."""
    first, shortest = examples[0].ids, min(each.answer for each in examples)
    return next((at for at in range(shortest) if any(each.ids[at] != first[at] for each in examples)), shortest - 1)


def loss_of(model: Any, batch: Sequence[Example], lead: int) -> Tensor:
    """Mean cross-entropy of the answers' tokens. The first `lead` tokens, which all share, are run once a batch."""
    longest = max(len(each.ids) for each in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    label_BT = torch.full_like(ids_BT, _UNLEARNT)
    for row, each in enumerate(batch):
        ids_BT[row, : len(each.ids)] = torch.tensor(each.ids)
        label_BT[row, each.answer : len(each.ids)] = torch.tensor(each.ids[each.answer :])
    cache = None
    if lead:
        cache = DynamicCache(config=model.config)
        model.model(input_ids=ids_BT[:1, :lead], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch))
    # Padding is on the right, where no token that counts attends to it.
    hidden_BTD = model.model(input_ids=ids_BT[:, lead:], past_key_values=cache, use_cache=lead > 0).last_hidden_state
    next_BT = label_BT[:, lead + 1 :]
    written_BT = next_BT != _UNLEARNT
    logits = model.get_output_embeddings()(hidden_BTD[:, :-1][written_BT])
    return nn.functional.cross_entropy(logits, next_BT[written_BT])


def folder_of(source: Path, asked: Sequence[Asked], recipe: Recipe, run: Path) -> Path:
    """Where all is kept that follows from a model, what it is taught, and how."""
    digest = hashlib.sha256(json.dumps([list(map(asdict, asked)), asdict(recipe)]).encode())
    for path in sorted(source.glob(WEIGHTS)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return run / digest.hexdigest()[:12]


def learn(source: Path, asked: Sequence[Asked], recipe: Recipe, folder: Path, *, every: int = 25) -> Path:
    """The taught model's folder, called as its source is; written unless it is there. A stopped training goes on from
    its state, which is kept in `folder` every so many steps: give each training one of its own, by `folder_of`.
    """
    output = folder / source.resolve().name
    if output.exists():
        return output
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    model.get_input_embeddings().weight.requires_grad_(False)
    examples = encode(tokenizer, asked)
    training = _Training(model, recipe, batches(examples, recipe), leading(examples))
    state = folder / "state.pt"
    if state.exists():
        training.restore(state)
    for step in tqdm(training.steps(), total=len(training.batches), initial=training.step, desc="learn"):
        if step % every == 0 or step == len(training.batches):
            training.keep(state)
    _write(model, source, output)
    state.unlink(missing_ok=True)
    return output


class _Training:
    """Steps of AdamW over all batches, from the one after the last that was made."""

    def __init__(self, model: Any, recipe: Recipe, of: Sequence[Sequence[Example]], lead: int) -> None:
        self._model, self._recipe, self._lead, self.batches, self.step = model, recipe, lead, of, 0
        self._learnt = [each for each in model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(self._learnt, lr=recipe.rate, weight_decay=0.0)

    def steps(self) -> Iterator[int]:
        """Makes the steps that are left, and says how many were made."""
        total = len(self.batches)
        while self.step < total:
            rise = (self.step + 1) / max(1, round(self._recipe.warmup * total))
            rate = self._recipe.rate * min(1.0, rise, (total - self.step) / total)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.zero_grad(set_to_none=True)
            loss_of(self._model, self.batches[self.step], self._lead).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._learnt, 1.0)
            self._optimizer.step()
            self.step += 1
            yield self.step

    def keep(self, file: Path) -> None:
        """Writes what a stopped training goes on from, in one step."""
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".new")
        torch.save(
            {
                "step": self.step,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            },
            written,
        )
        os.replace(written, file)

    def restore(self, file: Path) -> None:
        """Goes on from there."""
        state = torch.load(file, weights_only=True)
        self.step = int(state["step"])
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def _write(model: Any, source: Path, output: Path) -> None:
    """The source's folder with the taught weights, there only when it is whole."""
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(WEIGHTS))
    model.save_pretrained(part)
    part.rename(output)
