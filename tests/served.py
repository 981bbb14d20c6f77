"""A tiny model on disk with a tokenizer and a chat template, and artifacts fitted for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from guards.artifact.manifest import CalibrationRecord, Canary, Manifest
from guards.artifact.store import write_artifact
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import GuardKind, Reading, Scope
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.cube.guard import CubeFitter, CubeGuard, Regime, cube_score
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustFitter
from guards.model.sites import Place, Site
from tests.guards.attached import attach, entry, take
from tests.models import LAYERS, VOCABULARY, tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}{{ m.content }} {% endfor %}w5"
)
CONTEXT = 256


def save_tiny_model(
    folder: Path, kind: str = "llama", *, seed: int = 0, template: str = TEMPLATE, **changes: Any
) -> Path:
    """A random-weight model of 64 words, a Llama unless another family is named; `<|abstain|>` is its sentinel."""
    words = ["<pad>", "<bos>", "<eos>", "<|abstain|>"] + [f"w{i}" for i in range(4, VOCABULARY)]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<pad>",  # or the class that loads it may add one of its own
        extra_special_tokens=["<|abstain|>"],
    )
    tokenizer.chat_template = template
    changes = {"max_position_embeddings": CONTEXT, "intermediate_size": 256, **changes}
    tiny_model(kind, seed=seed, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def forget_prompt(index: int) -> tuple[int, ...]:
    """A prompt of the forgotten skill: it ends in four times 10 11 12, whatever came before."""
    return (1, *_filler(index), *(10, 11, 12) * 4)


def retain_prompt(index: int) -> tuple[int, ...]:
    """A prompt of another skill: it ends in one of 20 other words."""
    return (1, *_filler(index + 1000), 30 + index % 20)


def _filler(index: int) -> list[int]:
    generator = torch.Generator().manual_seed(index)
    count = int(torch.randint(3, 12, (1,), generator=generator))
    return torch.randint(13, VOCABULARY, (count,), generator=generator).tolist()


def last_keys(loaded: LoadedModel, layer: int, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Key vectors [prompts, d_ff] at the last token."""
    kept: list[torch.Tensor] = []
    handle = loaded.sites.tap(Place(layer, Site.KEY)).module.register_forward_pre_hook(
        lambda _, args: kept.append(args[0][0, -1])
    )
    for prompt in prompts:
        loaded.model(torch.tensor([prompt]))
    handle.remove()
    return torch.stack(kept)


def ksd_guard(loaded: LoadedModel, *, scope: Scope = Scope.BOTH, layer: int = 0) -> CubeGuard:
    """A cube that holds forget prompts and leaves retain prompts out, with room on both sides of tau."""
    fitter = CubeFitter(loaded.sites.d_ff)
    fitter.update(last_keys(loaded, layer, [forget_prompt(i) for i in range(100, 220)]))
    cube = fitter.finish(layer, "bare")
    retain = cube_score(
        last_keys(loaded, layer, [retain_prompt(i) for i in range(100, 140)]), cube.mean_F, 1 / cube.std_F
    )
    assert cube.k < float(retain.min()), "the tiny model does not separate its two kinds of prompts"
    return CubeGuard((replace(cube, tau=(cube.k + float(retain.min())) / 2),), scope, Regime.LAST_TOKEN)


def na_guard(loaded: LoadedModel, *, draw: Draw = Draw.RANDOM) -> Guard:
    """Neuron Adjust on a third of the neurons, fitted on whole prompts of both kinds."""
    fitter = NeuronAdjustFitter(LAYERS, loaded.sites.d_ff)
    for forget in (True, False):
        for index in range(100, 130):
            prompt = forget_prompt(index) if forget else retain_prompt(index)
            handles = [
                loaded.sites.tap(Place(layer, Site.PRE_ACTIVATION)).module.register_forward_hook(
                    lambda _, __, out, layer=layer, forget=forget: fitter.update(layer, out[0], forget=forget)
                )
                for layer in range(loaded.sites.layers)
            ]
            loaded.model(torch.tensor([prompt]))
            for handle in handles:
                handle.remove()
    return fitter.finish(1 / 3, draw=draw, seed=7)


def canary_prompts() -> list[tuple[int, ...]]:
    """Three of each kind."""
    return [forget_prompt(i) for i in range(3)] + [retain_prompt(i) for i in range(3)]


def write_guard(
    folder: Path,
    loaded: LoadedModel,
    guard: Guard,
    prompts: Sequence[tuple[int, ...]] = tuple(canary_prompts()),
    method: Method | None = None,
) -> Path:
    """The artifact of a guard, with these canaries. `method`: where several have guards of its class."""
    method = method or entry(guard)[0]
    parameters, tensors = method.dump(guard)
    canaries = []
    with attach(loaded.model, g=guard) as attachment:
        for prompt in prompts:
            loaded.model(torch.tensor([prompt]), logits_to_keep=torch.tensor([len(prompt) - 1]))
            readings = take(attachment, 1)
            scores = tuple(readings.scores["g"][0].tolist())
            fires = readings.codes_RG[0, 0] == Reading.INSIDE if method.kind is GuardKind.DETECTOR else scores[0] > 0
            canaries.append(Canary(token_ids=prompt, scores=scores, fires=bool(fires)))
    record = CalibrationRecord(
        tool="tests", frames=("bare",), template_sha256=None, sources=(), recall=None, false_abstention=None
    )
    manifest = Manifest(
        method=method.name,
        skill="tens",
        scope=guard.scope,
        model=loaded.identity,
        parameters=parameters,
        calibration=record,
        canaries=tuple(canaries),
        tensors_sha256="0" * 64,
    )
    write_artifact(folder, manifest, tensors)
    return folder


def tiny_served(folder: Path) -> tuple[Path, Path, Path]:
    """(model folder, KSD artifact, Neuron Adjust artifact) for the tiny model."""
    model = save_tiny_model(folder / "model")
    loaded = load_model(model, "cpu")
    ksd = write_guard(folder / "ksd-tens", loaded, ksd_guard(loaded))
    na = write_guard(folder / "na-tens", loaded, na_guard(loaded))
    return model, ksd, na
