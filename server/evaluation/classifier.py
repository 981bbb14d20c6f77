"""A sequence-classification model of the user's: an answer's toxicity is its probability of one label.

Of the folder's own weights alone, with no code of it. Texts are scored in batches of one length, so that nothing is
padded: a score does not depend on which others are asked, and a model without a padding token can be asked too.
"""

import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from guards.artifact.identity import file_sha256, tokenizer_sha256
from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import resolve_device, resolve_dtype
from guards.model.folder import check_files, load_tokenizer
from guards.model.weights import WeightFiles
from server.errors import EvaluationError
from server.evaluation.scorer import Score

_BATCH = 32
_PIECE = 4096
"""Texts that are sorted by length together."""
_CPU = torch.device("cpu")
_CONFIGURATION = ("config.json", "tokenizer_config.json", "special_tokens_map.json")


def open_classifier(folder: Path, label: str, device: str | None) -> "Classifier":
    """Loads it to the CPU; scoring takes it to the device, once an engine in this process has gone from there.

    `label`: as its configuration spells it. Raises UnsupportedModelError.
    """
    where = resolve_device(device)
    if not folder.is_dir():
        raise UnsupportedModelError(
            f"--toxicity-model {folder}: got no such folder, wanted a local model folder; nothing is downloaded"
        )
    check_files(folder)
    config = _load_config(folder)
    index, sigmoid = find_label(folder, config, label), _is_sigmoid(folder, config)
    tokenizer = load_tokenizer(folder)
    with WeightFiles(folder) as files:
        model = _load(folder, config, resolve_dtype(None, config, where), files)
        parts = [files.digest(), tokenizer_sha256(folder), label, str(model.dtype)]
    parts += [file_sha256(folder / name) for name in _CONFIGURATION if (folder / name).is_file()]
    described = {
        "kind": "classifier",
        "name": folder.resolve().name,
        "sha256": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        "label": label,
        "function": "sigmoid" if sigmoid else "softmax",
        "max_tokens": _longest(model, tokenizer),
    }
    return Classifier(model, tokenizer, index, where, described)


class Classifier:
    """A loaded model."""

    def __init__(
        self, model: Any, tokenizer: Any, index: int, device: torch.device, described: Mapping[str, Any]
    ) -> None:
        """`index`: of the label among the model's outputs. `described`: as of `Scorer`."""
        self._model, self._tokenizer, self._index, self._device = model, tokenizer, index, device
        self._described = described
        self._inputs = inspect.signature(model.forward).parameters.keys()
        self._batch = _BATCH if model.config.pad_token_id is not None else 1  # transformers refuses more without

    @property
    def described(self) -> Mapping[str, Any]:
        return self._described

    def score(self, texts: Sequence[str]) -> Iterator[tuple[str, Score]]:
        for start in range(0, len(texts), _PIECE):
            self._model.to(self._device)
            yield from self._piece(texts[start : start + _PIECE])

    def _piece(self, texts: Sequence[str]) -> Iterator[tuple[str, Score]]:
        longest = self._described["max_tokens"]
        encoded = self._tokenizer(list(texts), truncation=longest is not None, max_length=longest)
        inputs = {name: ids for name, ids in encoded.items() if name in self._inputs}
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for number, ids in enumerate(inputs["input_ids"]):
            alike[len(ids)].append(number)
        for length, numbers in sorted(alike.items()):
            for start in range(0, len(numbers), self._batch):
                batch = numbers[start : start + self._batch]
                rows = {name: [ids[each] for each in batch] for name, ids in inputs.items()}
                # A text without a token says nothing.
                found = self._probabilities(rows) if length else [0.0] * len(batch)
                for number, probability in zip(batch, found, strict=True):
                    yield texts[number], Score(probability, bool(encoded.encodings[number].overflowing))

    @torch.no_grad()
    def _probabilities(self, inputs: Mapping[str, Sequence[Sequence[int]]]) -> list[float]:
        """Of the label, for each text of a batch whose texts have as many tokens."""
        logits_NL = self._model(
            **{name: torch.tensor(ids, device=self._device) for name, ids in inputs.items()}
        ).logits.float()
        sigmoid = self._described["function"] == "sigmoid"
        found_NL = logits_NL.sigmoid() if sigmoid else logits_NL.softmax(-1)
        found_N = found_NL[:, self._index]
        if not found_N.isfinite().all():
            raise EvaluationError(
                f"--toxicity-model {self._described['name']}: gave a probability that is no number; try it on a CPU "
                "(--toxicity-device cpu)"
            )
        return [float(value) for value in found_N.tolist()]


def _load_config(folder: Path) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the file may hold anything, and so may what transformers raises
        raise UnsupportedModelError(
            f"{folder / 'config.json'}: transformers does not understand it ({error})"
        ) from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UnsupportedModelError(
            f"{folder}: transformers has no sequence classification of model type {config.model_type!r}; wanted a "
            "model that was saved as one"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{folder}: quantised checkpoints are not supported; use the unquantised model")
    return config


def find_label(folder: Path, config: Any, label: str) -> int:
    """The output that a label names. Raises UnsupportedModelError."""
    found = [int(index) for index, name in config.id2label.items() if name == label]
    if len(found) != 1:
        known = ", ".join(str(name) for _, name in sorted(config.id2label.items()))
        raise UnsupportedModelError(
            f"--toxicity-label: {folder.name} has {len(found) or 'no'} label{'s' * (len(found) > 1)} {label!r}; "
            f"wanted one of {known}"
        )
    return found[0]


def _is_sigmoid(folder: Path, config: Any) -> bool:
    """Whether labels are independent of each other: by the problem type, and without one where there is one label."""
    if config.problem_type == "regression":
        raise UnsupportedModelError(f"{folder}: is a regression, whose output is no probability; wanted a classifier")
    return config.problem_type == "multi_label_classification" or len(config.id2label) == 1


def _load(folder: Path, config: Any, kind: torch.dtype, files: WeightFiles) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    try:
        # Without the folder's name: transformers would look there for adapters, and for weights by other names.
        model, info = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=files.tensors(kind, _CPU),
            dtype=kind,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(f"{folder}: the weights cannot be loaded ({error})") from error
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedModelError(
            f"{folder}: {len(missing)} weight(s) are in no .safetensors file, first {missing[0]!r}: transformers would "
            "have made them up; wanted a model that was trained and saved for sequence classification"
        )
    return model.eval().requires_grad_(False)


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that fit: the lesser of what tokenizer and model say; None where neither says any.

    RoBERTa and its kin count positions from behind the padding token's, so that as many fewer fit.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    told = [each for each in (positions, tokenizer.model_max_length) if each and 0 < each < 1 << 30]
    return int(min(told)) if told else None
