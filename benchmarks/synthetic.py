"""A model of random weights and guards of random statistics: for timing, where only shapes matter."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from guards.artifact.identity import tokenizer_sha256
from guards.artifact.manifest import CalibrationRecord, Canary, ModelIdentity
from guards.calibration.entry import Entry
from guards.calibration.finished import Calibration
from guards.contract.guard import Guard
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Scope
from guards.inside.transformers.loading import DTYPES
from guards.methods.cube.guard import Cube, CubeGuard, Regime
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard
from guards.methods.neuron_adjust.guard import Draw, LayerStatistics, NeuronAdjustGuard
from guards.methods.registry import CUBE, LUNAR, NEURON_ADJUST, SELECTIVE_PRUNING, SPANS
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.guard import RmuGuard
from guards.methods.selective_pruning.guard import Importance, PruningGuard
from guards.methods.spans.guard import Judgement, LayerWeights, SpanGuard
from guards.model.weights import weights_sha256

VOCABULARY = 32000
END = 0
CONTEXT = 1024
NEVER, ALWAYS = 1e-6, 1e30
"""Taus inside which no key vector lies, and every one."""
FRACTION = 0.03


def build_model(folder: Path, *, layers: int, d_model: int, d_ff: int, dtype: str) -> ModelIdentity:
    """Writes a Llama of random weights with a byte-level tokenizer, and returns its identity."""
    config: Any = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=d_ff,
        num_hidden_layers=layers,
        num_attention_heads=d_model // 64,
        num_key_value_heads=max(1, d_model // 128),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(DTYPES[dtype])
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return ModelIdentity.model_validate(
        {
            "architecture": "LlamaForCausalLM",
            "layers": layers,
            "d_model": d_model,
            "d_ff": d_ff,
            "dtype": dtype,
            "tokenizer_sha256": tokenizer_sha256(folder),
            "weights_sha256": weights_sha256(folder),
        }
    )


TEMPLATE = (
    "{% for message in messages %}<|end|>{{ 'A' if message.role == 'assistant' else 'Q' }}: {{ message.content }}"
    "{% endfor %}<|end|>A: "
)
"""It tells turns apart, which guards over spans look for at every token."""


def _tokenizer() -> Any:
    """Every id decodes to a word of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|end|>", *letters, *(f"Ġw{index}" for index in range(VOCABULARY - len(letters) - 1))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=words[END], bos_token=words[END], chat_template=TEMPLATE
    )


def cubes(identity: ModelIdentity, layers: list[int], tau: float, seed: int) -> CubeGuard:
    """A detector with one cube at each of the layers."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.rand(identity.d_ff, generator=generator)

    return CubeGuard(
        tuple(Cube(layer, "bare", draw() - 0.5, draw() + 0.5, k=tau, tau=tau) for layer in layers),
        Scope.BOTH,
        Regime.LAST_TOKEN,
    )


def neuron_adjust(identity: ModelIdentity, fraction: float = FRACTION) -> NeuronAdjustGuard:
    """An intervention on that share of every layer's neurons, drawn as in the paper; it moves some of them."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, int(fraction * identity.d_ff))
    statistics = {
        layer: LayerStatistics(
            torch.randperm(identity.d_ff, generator=generator)[:count].sort().values,
            *(torch.full((count,), value) for value in (0.1, 1.0, -0.1, 1.0)),
        )
        for layer in range(identity.layers)
    }
    return NeuronAdjustGuard(statistics, fraction, Draw.RANDOM, seed=0)


def spans(identity: ModelIdentity, layers: list[int], seed: int) -> SpanGuard:
    """A detector over spans, of prompts and answers, that never fires: every token lies far on the retain side."""
    generator = torch.Generator().manual_seed(seed)
    terms = [LayerWeights(at, 1e-3 * torch.randn(identity.d_ff, generator=generator), -1e3) for at in layers]
    judgements = [
        Judgement(over, 0.25)
        for written in (False, True)
        for over in (Rise(0.5, written=written), MessageMean(3.0, written=written))
    ]
    return SpanGuard(tuple(terms), tuple(judgements), Scope.BOTH)


def pruning(identity: ModelIdentity, fraction: float = FRACTION) -> PruningGuard:
    """An intervention that sets that share of every layer's feed-forward neurons to zero."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, int(fraction * identity.d_ff))
    masks = {
        layer: torch.randperm(identity.d_ff, generator=generator)[:count].sort().values
        for layer in range(identity.layers)
    }
    return PruningGuard(
        masks,
        {},
        d_attention=identity.d_model,
        fraction=fraction,
        attention_fraction=0.0,
        steps=1,
        importance=Importance.ABS,
    )


def _factors(identity: ModelIdentity, rank: int, seed: int) -> Factors:
    """A change of one layer that is too small to tell."""
    generator = torch.Generator().manual_seed(seed)
    a_RF, b_DR = (
        1e-3 * torch.randn(*shape, generator=generator) for shape in ((rank, identity.d_ff), (identity.d_model, rank))
    )
    return Factors(a_RF, b_DR, usual=1.0)


def lunar(identity: ModelIdentity) -> LunarGuard:
    """An intervention: a branch of rank one at the middle layer."""
    return LunarGuard(
        {identity.layers // 2: _factors(identity, 1, 0)}, reference="unanswerable", strength=1.0, ridge=1.0
    )


def rmu(identity: ModelIdentity, rank: int, layers: int = 3) -> RmuGuard:
    """An intervention: branches at so many layers from the middle on."""
    first = identity.layers // 2
    return RmuGuard("rmu", {layer: _factors(identity, rank, layer) for layer in range(first, first + layers)})


def save(folder: Path, guard: Guard, identity: ModelIdentity) -> Path:
    """Writes an artifact. It loads, but its canary is made up: it can never be verified."""
    entries: dict[type, Entry] = {
        CubeGuard: CUBE,
        SpanGuard: SPANS,
        NeuronAdjustGuard: NEURON_ADJUST,
        PruningGuard: SELECTIVE_PRUNING,
        LunarGuard: LUNAR,
        RmuGuard: VARIANTS["rmu"],
    }
    calibration = Calibration(
        method=entries[type(guard)],
        guard=guard,
        identity=identity,
        record=CalibrationRecord(
            tool="benchmarks.synthetic",
            frames=("bare",),
            template_sha256=None,
            sources=(),
            recall=None,
            false_abstention=None,
            notes=("random statistics, for timing only",),
        ),
        canaries=(Canary(token_ids=(1,), scores=(0.0,), fires=True),),
    )
    calibration.save(folder, folder.name)
    return folder
