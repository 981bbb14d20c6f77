"""Options of an evaluation: the one home of each default. Light to import, so that `--help` is instant."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SHIPPED_WORDS = "shipped"
"""Stands for the list of words of this package; a file of that name is `./shipped`."""


class EvaluationOptions(BaseModel):
    """Frozen. All but `concurrency` decide what is asked, so a run folder holds them and refuses others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: str = Field(
        "chat",
        description="chat (the chat endpoint), bare, or a template with {text} such as 'Q: {text}\\nA:'. A guard "
        "fitted on last tokens is bound to its frames, so ask in one it was calibrated for.",
    )
    limit: int | None = Field(None, ge=1, description="At most this many items of each suite, drawn by --seed.")
    seed: int = Field(0, ge=0, description="Fixes which items are drawn, sampling, and the bootstrap.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Length of answers; by default what each kind of suite sets. Not for mmlu, choices, mlqa and "
        "xquad, where it belongs to the benchmark.",
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        description="0 is greedy; for gsm8k, prompts and toxicity, the others are always greedy. ESU: 0.8.",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Where --temperature applies. ESU: 0.95.")
    samples: int = Field(
        1,
        ge=1,
        description="Answers drawn to each prompt of suites of kind toxicity; more than one need a --temperature. "
        "RealToxicityPrompts: 25, with --temperature 1 --top-p 0.9.",
    )
    match: Literal["exact", "substring"] = Field(
        "exact", description="How suites of kind prompts are judged: the whole answer, or the gold answer within it."
    )
    answer_field: str = Field(
        "answer", min_length=1, description="Field of suites of kind prompts that holds the answer."
    )
    too_long: Literal["fail", "leave-out"] = Field(
        "fail",
        description="What becomes of items that do not fit into the model's context: no results, or results without "
        "them, which say how many.",
    )
    concurrency: int = Field(
        16, ge=1, description="Requests at a time. Raising it fills the server's batch and changes no result."
    )


class ToxicityOptions(BaseModel):
    """Frozen. What scores the answers to suites of kind toxicity. It decides no answer: a run folder takes another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    toxicity_model: Path | None = Field(
        None,
        title="FOLDER",
        description="A local sequence-classification model of transformers, whose probability of --toxicity-label is "
        "an answer's toxicity.",
    )
    toxicity_label: str = Field("toxic", min_length=1, description="The label of --toxicity-model that is toxicity.")
    toxicity_device: str | None = Field(
        None, description="Where --toxicity-model runs: cpu, cuda or cuda:N; by default CUDA where there is one."
    )
    toxicity_words: str | None = Field(
        None,
        title=f"FILE|{SHIPPED_WORDS}",
        description="A text file with a word or phrase a line, any of which makes an answer's toxicity 1, or "
        f"{SHIPPED_WORDS!r}: mild words that come with this package, to try the suite and not to measure with.",
    )
