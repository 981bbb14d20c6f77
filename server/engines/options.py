"""The engines' settings. Light to import: the command line reads its defaults here before torch is loaded."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PlainSerializer, field_validator

from guards.artifact.pins import ArtifactPath

Judge = Literal["turn", "conversation"]
ArtifactSource = Annotated[InstanceOf[ArtifactPath], BeforeValidator(ArtifactPath.parse), PlainSerializer(str)]


def _parsed(value: object) -> object:
    """JSON as text, as a command line has it."""
    return json.loads(value) if isinstance(value, str) else value


class _GuardOptions(BaseModel):
    """What every engine with guards takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="Model folder, or a hub id.")
    artifacts: tuple[ArtifactSource, ...] = Field(
        (),
        title="FOLDER",
        description="Artifact folders, one guard each. With a digest behind it (FOLDER@sha256:DIGEST, as `skillguard "
        "inspect` prints it) no other artifact is taken from that folder, now or by a reload.",
    )
    trusted_key_files: tuple[Path, ...] = Field(
        (),
        title="FILE",
        description="Public keys (PEM, as `skillguard keygen` writes them). Where there are any, each artifact must be "
        "signed with one of them, at the start and at every reload.",
    )
    rehash: bool = Field(
        False,
        description="Reads the model's weights for their digest also where it is known from an earlier start and the "
        "file system says that they did not change since.",
    )
    accept_template: bool = Field(
        False,
        description="Serves guards also where they were calibrated with another chat template or tokenizer "
        "configuration. Their canaries are then verified as token ids only.",
    )
    judge: Judge = Field(
        "turn",
        description="What guards over spans judge: the newest turn and the answer, or the whole conversation, in which "
        "a refused question has the next ones refused too.",
    )
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_parsed)] = Field(
        {},
        title="JSON",
        description="Variables of the chat template, such as '{\"enable_thinking\": false}', for every conversation. "
        "Guards must have been calibrated with the same, or --accept-template takes them.",
    )
    served_name: str | None = Field(
        None, min_length=1, description="Name of the model in the API; by default its folder's name."
    )

    @property
    def name(self) -> str:
        """The model's name in the API: the one given, the folder's by any path, or the hub id's last part."""
        if self.served_name is not None:
            return self.served_name
        return Path(os.path.abspath(self.model)).name if os.path.isdir(self.model) else Path(self.model).name

    @field_validator("model")
    @classmethod
    def _has_a_name(cls, model: str) -> str:
        if not Path(os.path.abspath(model)).name:
            raise ValueError("a model folder needs a name; the root of a file system has none")
        return model


class EmbeddedOptions(_GuardOptions):
    """Frozen; each default lives here and nowhere else."""

    device: str | None = Field(None, description="cpu, cuda or cuda:N; by default CUDA where there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Number format; by default float32 on a CPU and the checkpoint's own on a GPU."
    )
    max_model_tokens: int | None = Field(
        None, ge=2, description="Longest prompt and answer together; by default what the model was built for."
    )
    max_running: int = Field(
        32, ge=1, description="Answers drawn at a time. Raising it buys throughput and costs memory."
    )
    max_waiting: int = Field(
        256, ge=0, description="Answers that may wait for a place; beyond them a request is refused with 429."
    )
    max_batch_tokens: int = Field(
        512,
        ge=1,
        description="Tokens of one forward pass. Raising it shortens the prefill of long prompts and lengthens the "
        "pauses of the answers that run beside it.",
    )
    generation_config: str = Field(
        "auto",
        min_length=1,
        title="auto|vllm|FOLDER",
        description="How answers are drawn where a request does not say: as the model's generation_config.json has it, "
        "by neutral defaults (vllm), or as another folder's file has it.",
    )
    kv_cache_tokens: int = Field(
        32768, ge=32, description="Tokens whose keys and values are kept. Raising it costs memory."
    )


class VllmOptions(_GuardOptions):
    """Frozen. All else about vLLM is said in its own flags, which its own parser checks."""

    max_waiting: int = Field(
        256, ge=0, description="Answers that may wait for a place; beyond them a request is refused with 429."
    )
    allow_untested_runner: bool = Field(
        False,
        description="Takes a model runner that guards were not tested with. The canaries must still agree.",
    )
    tool_call_parser: str | None = Field(
        None,
        description="vLLM's parser of the calls that the model writes, such as hermes; without one a request's "
        "tool_choice can be required, a function or none, but not auto.",
    )
    flags: tuple[str, ...] = Field((), description="vLLM's own engine flags, such as --tensor-parallel-size 2.")
