"""A tiny calibratable model: random weights, a character tokenizer, and texts its guards can tell apart."""

import random
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guards.artifact.identity import identify
from guards.calibration.sources import Source
from guards.inside.transformers.loading import LoadedModel
from guards.inside.transformers.sites import find_sites
from guards.model.encoding import TextCodec
from tests.models import tiny_model

SEED = 3
"""Random weights that tell sums from words; others do it less well, and none was trained to."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=? :QA\n."
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}Q: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
DATED_TEMPLATE = TEMPLATE.replace("{% for", "{{ strftime_now('%d %m %Y') }}\n{% for", 1)
"""It writes the day, as Llama 3.2's does."""


def tiny_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a character, 64 or fewer in all."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def tiny_loaded(
    kind: str = "llama", *, chat_template: str | None = TEMPLATE, seed: int = SEED, **changes: Any
) -> LoadedModel:
    """A loaded tiny model of one family."""
    model = tiny_model(kind, seed=seed, **changes)
    sites = find_sites(model)
    codec = TextCodec(tiny_tokenizer(chat_template))
    return LoadedModel(model, codec, sites, identify(model.config, sites, "float32", "0" * 64, "1" * 64))


def save_tiny(folder: Path) -> Path:
    """A model folder that `load_model` reads."""
    tiny_model("llama", seed=SEED).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def sums(count: int, seed: int = 0) -> tuple[str, ...]:
    """Distinct sums such as "12+34=", the skill to forget."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{draw.randrange(100)}+{draw.randrange(100)}="] = None
    return tuple(found)


def words(count: int, seed: int = 0) -> tuple[str, ...]:
    """Distinct runs of words, the rest."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join("".join(draw.choices("abcdefgh", k=draw.randrange(2, 6))) for _ in range(3)) + "."] = None
    return tuple(found)


def sources(count: int = 240) -> tuple[list[Source], list[Source]]:
    """Forget and retain sources of that many texts."""
    return [Source("sums", sums(count))], [Source("words", words(count))]
