"""What a model predicts of held-out answers, by itself and behind a guard that abstains.

Suffixes: D documents, B documents of a batch, T tokens, V vocabulary.

A document is a prompt of a test side in the frame and its answer; of WikiText, which answers nothing, the line itself.
Predicted are the answer's tokens (the line's). A document whose prompt a guard refuses counts as failed whole: none of
its tokens is right, and each has the probability of a blind guess, one over the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from benchmarks.prompts.splits import XQUAD, Split, Values, normal_form, rows
from benchmarks.real_text.formats import worked_answer
from benchmarks.real_text.skills import FRAME
from guards.calibration.activations import TokenIds
from guards.calibration.sources import seeded_rank
from guards.inside.transformers.capture import make_batch, plan_batches
from guards.inside.transformers.loading import LoadedModel
from guards.model.encoding import TextCodec

DOCUMENTS = 200
"""Of each data set."""
BATCH_TOKENS = 2048

ANSWERS: dict[str, Callable[[Values], tuple[str, str | None]]] = {
    "gsm8k": lambda row: (row["question"], worked_answer(row)),
    "mbpp": lambda row: (row["text"], row["code"].replace("\r\n", "\n").strip()),
    "mmlu": lambda row: (row["question"], row["choices"][row["answer"]]),
    **{name: lambda row: (row["question"], row["answers"][0]) for name in XQUAD},
    "wikitext2": lambda row: (row["text"], None),
}
"""Of each data set's rows, the text that is asked and the answer."""


@dataclass(frozen=True)
class Document:
    """`prompt` is what a guard judges, `ids` what the model reads; predicted are those from `first` on.

    `size`: bytes of what is predicted.
    """

    prompt: TokenIds
    ids: TokenIds
    first: int
    size: int


@dataclass(frozen=True)
class Predicted:
    """Of every document the tokens predicted, their negative log likelihood in nats, and how many were likeliest."""

    token_D: Tensor
    nll_D: Tensor
    right_D: Tensor

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest."""
        return float(self.right_D.sum() / self.token_D.sum())

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(float(self.nll_D.sum() / self.token_D.sum()))

    def behind(self, refused_D: Tensor, vocabulary: int) -> "Predicted":
        """The same with the refused documents failed whole."""
        blind_D = self.token_D * math.log(vocabulary)
        return replace(
            self,
            nll_D=torch.where(refused_D, blind_D, self.nll_D),
            right_D=torch.where(refused_D, torch.zeros_like(self.right_D), self.right_D),
        )


def documents(data: Path, codec: TextCodec, name: str, limit: int, max_tokens: int | None) -> list[Document]:
    """At most `limit` held-out documents of a data set, those that fit the model's context."""
    pairs = [ANSWERS[name](row) for row in rows(data, name, Split.TEST)]
    pairs = list({normal_form(text): (text, answer) for text, answer in pairs if text.strip()}.values())
    found = []
    for index in sorted(seeded_rank([text for text, _ in pairs], 0)[:limit]):
        text, answer = pairs[index]
        prompt = codec.encode_frame(FRAME, text)
        if answer is None:
            ids, first, said = codec.encode_text(text), 1, text
        else:
            said = f" {answer}"
            ids, first = codec.encode_text(FRAME.replace("{text}", text) + said), len(prompt)
            assert ids[:first] == prompt, "an answer that begins with a space leaves the prompt's tokens as they are"
        if first < len(ids) and (max_tokens is None or len(ids) <= max_tokens):
            found.append(Document(prompt, ids, first, len(said.encode())))
    return found


@torch.no_grad()
def predict(loaded: LoadedModel, every: Sequence[Document]) -> Predicted:
    """Runs the model over the documents."""
    token_D, nll_D, right_D = (torch.zeros(len(every), dtype=torch.float64) for _ in range(3))
    for group in plan_batches([len(document.ids) for document in every], BATCH_TOKENS):
        batch = make_batch([document.ids for document in every], group, loaded.device)
        logits_BTV = loaded.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        for row, index in enumerate(group):
            document = every[index]
            predicted = slice(document.first - 1, len(document.ids) - 1)
            log_TV = log_softmax(logits_BTV[row, predicted].float(), dim=-1)
            wanted_T = batch.ids_BT[row, document.first : len(document.ids)]
            token_D[index] = wanted_T.numel()
            nll_D[index] = -log_TV.gather(1, wanted_T[:, None]).double().sum().cpu()
            right_D[index] = (log_TV.argmax(dim=-1) == wanted_T).sum().cpu()
    return Predicted(token_D, nll_D, right_D)


def report(loaded: LoadedModel, data: Path) -> dict[str, dict[str, Any]]:
    """Accuracy, perplexity and bits per byte by data set, of the model by itself."""
    found = {}
    for name in ANSWERS:
        every = documents(data, loaded.codec, name, DOCUMENTS, loaded.max_tokens)
        predicted = predict(loaded, every)
        bits = float(predicted.nll_D.sum()) / math.log(2)
        found[name] = {
            "documents": predicted.token_D.numel(),
            "tokens": int(predicted.token_D.sum()),
            "bytes": sum(document.size for document in every),
            "accuracy": round(predicted.accuracy, 4),
            "perplexity": round(predicted.perplexity, 2),
            "bits_per_byte": round(bits / sum(document.size for document in every), 4),
        }
    return found
