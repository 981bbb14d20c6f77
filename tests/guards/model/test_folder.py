"""Model folders as people have them: each part sound by itself, and not of one model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model
from guards.model.folder import check_files, load_tokenizer, open_codec, resolve_folder
from tests.guards.tiny import TEMPLATE, save_tiny, tiny_tokenizer
from tests.models import VOCABULARY, tiny_config

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """The weights in two files with an index, which is returned."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    index = {name: f"model-0000{1 + (at >= 5)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(index.values()):
        part = {name: tensors[name] for name in names if index[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    edit(folder / f"{WEIGHTS}.index.json", weight_map=index, metadata={})
    return index


def adapter_beside(folder: Path) -> None:
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="x")


def adapter_weights_beside(folder: Path) -> None:
    save_file({"lora_A": torch.zeros(1)}, folder / "adapter_model.safetensors")


def second_weights(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")


def whole_beside_shards(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "kept")
    shard(folder)
    (folder / "kept").rename(folder / WEIGHTS)


def shard_missing(folder: Path) -> None:
    (folder / shard(folder)["model.norm.weight"]).unlink()


def weight_missing_in_shard(folder: Path) -> None:
    index = shard(folder)
    edit(folder / f"{WEIGHTS}.index.json", weight_map={**index, "model.more": index["model.embed_tokens.weight"]})


def broken_index(folder: Path) -> None:
    shard(folder)
    (folder / f"{WEIGHTS}.index.json").write_text("[]")


def other_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=VOCABULARY + 1)


def tokens_beyond(folder: Path) -> None:
    """Turn tokens were added, as to an instruction-tuned model, and the embedding was not resized."""
    tokenizer = tiny_tokenizer(TEMPLATE.replace("Q:", "<|im_start|>"))
    tokenizer.add_tokens([f"<{index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder)


def words_beyond(folder: Path) -> None:
    """Added tokens that are not special: any text may hold one."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)


def end_beyond(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[2, VOCABULARY])


def end_is_text(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id="<eos>")


def no_default_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": TEMPLATE}])


def odd_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


BROKEN: dict[Callable[[Path], None], str] = {
    adapter_beside: r"holds adapter_config\.json beside the model's own files: where peft is installed",
    adapter_weights_beside: r"holds adapter_model\.safetensors beside",
    second_weights: r"holds consolidated\.safetensors beside model\.safetensors: it depends on the engine",
    whole_beside_shards: r"holds model\.safetensors beside model-00001-of-00002\.safetensors",
    shard_missing: r"got no model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json names",
    weight_missing_in_shard: r"got no weight 'model\.more', which model\.safetensors\.index\.json names",
    broken_index: r"is no index of weights",
    other_vocabulary: r"weights have 64 tokens \(.*embed_tokens\.weight\), and config\.json a vocab_size of 65",
    tokens_beyond: r"the tokenizer has token '<\|im_start\|>' with id 64, and the embedding 64 rows",
    words_beyond: r"has token 'word\d+' with id 64",
    end_beyond: r"has the end-of-text token 64, and the embedding 64 rows",
    end_is_text: r"eos_token_id: got '<eos>', wanted a token id or a list",
    no_default_template: r"chat templates named 'tool_use' and none named 'default'",
    odd_tokenizer: r"the tokenizer cannot be loaded",
}
"""What was done to a folder -> what is said of it. vLLM is shown them in `engines/vllm/test_folders.py`."""


@pytest.mark.parametrize("breaks", list(BROKEN), ids=lambda breaks: breaks.__name__)
def test_a_folder_whose_parts_are_not_of_one_model(
    folder: Path, breaks: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a weight is read."""
    breaks(folder)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UnsupportedModelError, match=BROKEN[breaks]) as caught:
        load_model(folder, "cpu")
    assert str(folder) in str(caught.value)


def test_shards_are_one_model(folder: Path) -> None:
    whole = load_model(folder, "cpu").model.state_dict()
    shard(folder)
    assert all(torch.equal(whole[name], held) for name, held in load_model(folder, "cpu").model.state_dict().items())


def test_an_image_token_beyond_the_embedding_that_nothing_writes(folder: Path) -> None:
    """As in Gemma 3's text models: special, so that no text makes it, and in no template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    codec = load_model(folder, "cpu").codec
    assert codec.tokenizer.convert_tokens_to_ids("<image>") == VOCABULARY
    assert max(codec.encode_text("an <image>")) < VOCABULARY


@pytest.mark.parametrize(
    ("where", "said", "ends"),
    [
        ("config.json", [2, "stop"], True),
        ("generation_config.json", [2, "stop"], True),
        ("generation_config.json", ["stop"], True),
        ("generation_config.json", None, False),
        ("generation_config.json", [], False),
    ],
)
def test_end_tokens_are_one_several_or_none(folder: Path, where: str, said: Any, ends: bool) -> None:
    """No text makes one, also where the tokenizer does not call it special."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<stop>", "<halt>"])
    tokenizer.save_pretrained(folder)
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    edit(folder / where, eos_token_id=[stop if each == "stop" else each for each in said] if said else said)
    ids = load_model(folder, "cpu").codec.encode_text("a<stop>b<halt>")
    assert (stop not in ids) is ends
    assert stop + 1 in ids


@pytest.mark.parametrize(
    "change",
    [
        {"extra_special_tokens": ["<x>"]},
        {"extra_special_tokens": {"image_token": "<x>"}},
        {"additional_special_tokens": ["<x>"]},
        {"eos_token": {"content": "<eos>", "__type": "AddedToken", "special": True}},
        {"model_max_length": 1000000000000000019884624838656},
        {"chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]},
    ],
    ids=lambda change: "-".join(change),
)
def test_fields_have_more_than_one_legal_type(folder: Path, change: dict[str, Any]) -> None:
    if "chat_template" in change:
        (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", **change)
    loaded = load_model(folder, "cpu")
    assert loaded.codec.encode_frame("chat", "abc") == load_model(folder, "cpu").codec.encode_frame("chat", "abc")
    assert loaded.codec.chat.serves


def test_templates_in_files_of_their_own(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T" + TEMPLATE)
    codec = open_codec(folder, tiny_config("llama"), {})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    asked = [{"role": "user", "content": "abc"}]
    assert codec.rendered(asked, [tool]).text == "T" + codec.rendered(asked).text


def test_the_tokenizer_does_not_depend_on_what_is_installed(folder: Path) -> None:
    """With mistral-common, transformers would prefer a tekken.json, which no digest holds."""
    (folder / "tekken.json").write_text("{}")
    assert load_tokenizer(folder).get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "1 weight.* belong to layers that run and are not used, first"),
        ("model.layers.1.mlp.down_proj.lora_A.weight", "belong to layers that run"),
        ("model.layers.7.mlp.down_proj.weight", "belong to layers that run"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("vision_tower.layers.0.weight", None),
    ],
)
def test_weights_that_the_model_does_not_use(folder: Path, name: str, message: str | None) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    if message is None:
        load_model(folder, "cpu")
        return
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(folder, "cpu")


def test_no_code_of_the_folder_is_run(folder: Path) -> None:
    (folder / "custom.py").write_text("raise SystemExit('ran')")
    edit(
        folder / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"},
    )
    with pytest.raises(UnsupportedModelError, match="transformers does not understand it"):
        load_model(folder, "cpu")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf: got a GGUF file, .*wanted a transformers model folder"):
        resolve_folder(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("spelling", [".", "../model", "./", "../model/."])
def test_a_folder_is_the_same_by_any_path(folder: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert resolve_folder(spelling) == folder
    check_files(resolve_folder(spelling))
