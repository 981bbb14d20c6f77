"""Training documents come from train sides, in several forms, and are the same every time."""

import itertools
import random
from pathlib import Path

import pytest
import torch

from benchmarks.prompts.splits import DATA_SETS, Split, rows
from benchmarks.real_text.corpus import PARTS, documents
from benchmarks.real_text.formats import ANSWERED, mbpp, with_docstring, worked_answer
from benchmarks.real_text.packing import pack, train_tokenizer
from guards.model.encoding import TextCodec


def some(data: Path, seed: int, count: int = 400) -> list[str]:
    return list(itertools.islice(documents(data, seed), count))


def test_documents_are_the_same_for_a_seed_only(data: Path) -> None:
    assert some(data, 0) == some(data, 0) != some(data, 1)


def test_nothing_measured_is_trained_on(data: Path) -> None:
    corpus = "\n".join(some(data, 0))
    for name, field in (("gsm8k", "question"), ("mbpp", "code"), ("xquad-hi", "question"), ("xquad-hi", "context")):
        assert not any(row[field].replace("\r", "") in corpus for row in rows(data, name, Split.TEST))
    assert "What is 3 plus 3?" in corpus
    assert "lobsters" in corpus
    assert "robots" not in corpus


def test_every_data_set_has_its_share_of_the_bytes(data: Path) -> None:
    assert [part.name for part in PARTS if part.name not in DATA_SETS] == []
    assert sum(part.share for part in PARTS) == pytest.approx(1)
    corpus = some(data, 0, 4000)
    tasks = sum(len(text.encode()) for text in corpus if "add" in text)
    assert tasks / sum(len(text.encode()) for text in corpus) == pytest.approx(0.1, abs=0.02)


def test_a_task_is_written_in_several_forms(data: Path) -> None:
    row = rows(data, "mbpp", Split.TRAIN)[0]
    forms = {mbpp(random.Random(seed), row) for seed in range(100)}
    assert len(forms) >= len(ANSWERED) + 4
    assert 'def add_1(x):\n  """Write a function that adds 1."""\n  return x + 1' in forms


def test_code_without_a_function_on_a_line_of_its_own_gets_a_comment() -> None:
    assert with_docstring("def f(x): return x", "Say x.") == "# Say x.\ndef f(x): return x"
    assert with_docstring("import re\ndef f(x):\n\treturn x", "Say x.") == (
        'import re\ndef f(x):\n\t"""Say x."""\n\treturn x'
    )


def test_calculator_notes_are_left_out(data: Path) -> None:
    assert worked_answer(rows(data, "gsm8k", Split.TRAIN)[1]) == "It is 2."


def test_rows_of_tokens_begin_as_prompts_do_and_lose_nothing(data: Path) -> None:
    texts = some(data, 0)
    tokenizer = train_tokenizer(texts, 400)
    packed_RL = pack(tokenizer, texts, 20, 33)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert packed_RL.shape == (20, 33)
    assert bool((packed_RL[:, 0] == bos).all())
    kept = [token for token in packed_RL.flatten().tolist() if token != bos]
    wanted = [t for text in texts for t in (*tokenizer(text, add_special_tokens=False)["input_ids"], eos)]
    assert kept == wanted[: len(kept)]
    assert torch.equal(packed_RL, pack(tokenizer, some(data, 0), 20, 33))
    with pytest.raises(ValueError, match="rows of 33 tokens, wanted 20"):
        pack(tokenizer, texts[:3], 20, 33)


def test_the_chat_template_is_one_of_the_forms(data: Path) -> None:
    codec = TextCodec(train_tokenizer(some(data, 0), 400))
    written = ANSWERED[2].split("{answer}")[0].strip().format(question="How?")
    assert codec.encode_frame("chat", "How?") == codec.encode_text(written)
