"""One look at a model folder before any work, the same for calibration and serving and for both engines.

Weights, configuration, tokenizer, chat template and end tokens are checked against each other here: each may be sound
by itself and yet not be of the model that the others are of.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from guards.errors import UnsupportedModelError
from guards.model.encoding import TextCodec

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""How the names of weights end that hold a vector for each token."""
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def local_folder(name: str) -> Path | None:
    """The model folder of this name; None where it can only be a hub id. Raises UnsupportedModelError for neither."""
    path = Path(name)
    if path.is_dir():
        return Path(os.path.abspath(path))
    if path.is_file():
        kind = "a GGUF file, which holds quantised weights of another program's" if path.suffix == ".gguf" else "a file"
        raise UnsupportedModelError(
            f"{name}: got {kind}; wanted a transformers model folder (config.json, *.safetensors, tokenizer.json) or a "
            "hub id ORGANISATION/NAME"
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UnsupportedModelError(f"{name}: got no such folder; wanted a model folder or a hub id ORGANISATION/NAME")
    return None


def resolve_folder(name: str) -> Path:
    """A local model folder, or a hub model downloaded to the local cache. Raises UnsupportedModelError."""
    if (folder := local_folder(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=["consolidated*"]))
    except (OSError, ValueError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(f"{name}: is no local folder, and the hub did not give it ({first})") from error


def check_files(folder: Path) -> None:
    """Raises UnsupportedModelError where it depends on the engine or on what is installed which weights are read."""
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder}: got no config.json; wanted a transformers model folder")
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UnsupportedModelError(
                f"{folder}: {path.name} is a pipe or a device, which may never end; move it out of the folder"
            )
    for adapter in sorted(folder.glob("adapter_*")):
        raise UnsupportedModelError(
            f"{folder}: holds {adapter.name} beside the model's own files: where peft is installed, transformers would "
            "load that adapter over the weights; merge it into them, or move it out of the folder"
        )
    files = {path.name for path in folder.glob("*.safetensors")}
    if not files:
        raise UnsupportedModelError(f"{folder}: got no .safetensors file; convert the model's weights to safetensors")
    indexed = (folder / INDEX).is_file()
    wanted = set(_indexed(folder).values()) if indexed else {WHOLE} & files or files
    if missing := sorted(wanted - files):
        raise UnsupportedModelError(f"{folder}: got no {missing[0]}, which {INDEX} names; copy the model again")
    if extra := sorted(files - wanted):
        raise UnsupportedModelError(
            f"{folder}: holds {extra[0]} beside {sorted(wanted)[0]}: it depends on the engine which of them is loaded; "
            "move what is not the model's out of the folder"
        )


def _indexed(folder: Path) -> dict[str, str]:
    """Weight -> its file; nothing without an index. Raises UnsupportedModelError."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        named = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, LookupError, TypeError) as error:
        raise UnsupportedModelError(f"{path}: is no index of weights ({error!r}); copy it again") from error
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise UnsupportedModelError(f"{path}: names no files; copy it again")
    return named


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder, made of its own files alone. Raises UnsupportedModelError."""
    from transformers import AutoTokenizer

    try:
        # With mistral-common installed, a tekken.json would be taken in the place of tokenizer.json.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, mistral_format=False
        )
    except Exception as error:  # its files may hold anything, and so may what transformers raises
        raise UnsupportedModelError(f"{folder}: the tokenizer cannot be loaded ({error!r})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(f"{folder}: has no fast tokenizer (tokenizer.json); convert it first")
    return tokenizer


def open_codec(folder: Path, config: Any, variables: Mapping[str, Any]) -> TextCodec:
    """The tokenizer and chat template of a folder, after all checks that need no weight to be loaded.

    `config`: the text model's, as the engine has read it. `variables` as of `TextCodec`. Raises UnsupportedModelError,
    or PromptRefusedError for the variables.
    """
    check_files(folder)
    rows = _embedding_rows(folder, int(config.vocab_size))
    ends = _end_ids(folder, config)
    if wrong := sorted(end for end in ends if not 0 <= end < rows):
        raise UnsupportedModelError(
            f"{folder}: its configuration has the end-of-text token {wrong[0]}, and the embedding {rows} rows: mend "
            "eos_token_id in config.json or generation_config.json"
        )
    tokenizer = load_tokenizer(folder)
    try:
        codec = TextCodec(tokenizer, variables, ends)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{folder}: {error}") from error
    _refuse_beyond(folder, codec, rows)
    return codec


def _end_ids(folder: Path, config: Any) -> frozenset[int]:
    """What ends a turn, as the two files say: each one number, several or none."""
    said = [getattr(config, "eos_token_id", None)]
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            said.append(json.loads(path.read_bytes()).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise UnsupportedModelError(f"{path}: is no JSON object ({error}); mend or remove it") from error
    found = [end for each in said for end in (each if isinstance(each, list | tuple) else [each]) if end is not None]
    if wrong := [end for end in found if not isinstance(end, int) or isinstance(end, bool)]:
        raise UnsupportedModelError(
            f"{folder}: eos_token_id: got {wrong[0]!r}, wanted a token id or a list of them, in config.json and "
            "generation_config.json"
        )
    return frozenset(found)


def _embedding_rows(folder: Path, vocabulary: int) -> int:
    """Tokens that the weights have vectors for, read off the files' headers.

    Raises UnsupportedModelError where the configuration says another number, or the index a weight that is not there.
    """
    for path in sorted(folder.glob("*.safetensors")):
        named = {name for name, file in _indexed(folder).items() if file == path.name}
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                shapes = {name: file.get_slice(name).get_shape() for name in names if name.endswith(_EMBEDDINGS)}
        except (OSError, SafetensorError) as error:
            raise UnsupportedModelError(f"{path}: the weights cannot be loaded ({error}); copy them again") from error
        if missing := sorted(named - names):
            raise UnsupportedModelError(
                f"{path}: got no weight {missing[0]!r}, which {INDEX} names; copy the model again"
            )
        for name, shape in shapes.items():
            if shape[0] != vocabulary:
                raise UnsupportedModelError(
                    f"{folder}: its weights have {shape[0]} tokens ({name}), and config.json a vocab_size of "
                    f"{vocabulary}: take the config.json that was saved with the weights"
                )
    return vocabulary


def _refuse_beyond(folder: Path, codec: TextCodec, rows: int) -> None:
    """Raises UnsupportedModelError where a text, or the chat template, makes a token that the embedding lacks.

    A special token that nothing writes, such as that of an image, may lie beyond.
    """
    tokenizer = codec.tokenizer
    added = tokenizer.added_tokens_decoder
    named = {tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: int(item[1])):
        if index < rows:
            continue
        if index in named or index not in added or not added[index].special or codec.chat.writes(token):
            raise UnsupportedModelError(
                f"{folder}: the tokenizer has token {token!r} with id {index}, and the embedding {rows} rows "
                "(vocab_size): resize the model (model.resize_token_embeddings(len(tokenizer))) and save both, or take "
                "the tokenizer that the model was saved with"
            )
