"""Loads a causal language model for calibration and for the embedded engine: one place for what is refused."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import ModuleList

from guards.artifact.identity import identify, tokenizer_sha256
from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Consumer, Pass, Reader, TokenIds
from guards.contract.guard import Guard, default_rules
from guards.contract.method import Method
from guards.core.policy import Policy
from guards.core.verdict import Reading
from guards.errors import UnsupportedModelError
from guards.inside.transformers.attach import Attachment
from guards.inside.transformers.capture import stream
from guards.inside.transformers.sites import find_family, find_sites
from guards.inside.transformers.tuning import TunedModel, tuned
from guards.inside.transformers.writing import write
from guards.model.digests import DigestCache
from guards.model.encoding import TextCodec
from guards.model.families import TEXT_WEIGHTS, WRAPPERS
from guards.model.folder import check_files, open_codec, resolve_folder
from guards.model.sites import ModelSites, Place, Site
from guards.model.weights import WeightFiles

_BUFFERS = re.compile(r"(^|\.)(inv_freq|(attn|attention)\.(masked_)?bias)$")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what guards need to know about it. Frozen weights, eval mode, one device.

    It is the embedded engine's `guards.calibration.activations.Activations`.
    """

    model: Any
    """transformers' PreTrainedModel with a language-model head."""
    codec: TextCodec
    sites: ModelSites
    identity: ModelIdentity

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def max_tokens(self) -> int | None:
        """Positions the model was built for, None where its configuration does not say."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) else None

    def width(self, site: Site) -> int:
        """See `guards.model.sites.ModelSites.width`."""
        return self.sites.width(site)

    @property
    def lacking(self) -> Mapping[Place, str]:
        """See `guards.model.sites.ModelSites`."""
        return self.sites.lacking

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `guards.inside.transformers.capture.stream`."""
        stream(self, wanted, examples, consume, advance)

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        """See `guards.inside.transformers.writing.write`."""
        return write(self.model, self.codec.tokenizer, prompts, tokens, advance)

    def tuned(self, layers: Sequence[int]) -> AbstractContextManager[TunedModel]:
        """See `guards.inside.transformers.tuning.tuned`."""
        return tuned(self, layers)

    @contextmanager
    def guarded(self, method: Method, guard: Guard) -> Iterator[None]:
        """Its hooks run before those of `stream`, which are younger."""
        with Attachment(self.model, self.sites, {"guard": (method, guard)}, self.codec.openings):
            yield

    @contextmanager
    def reading(self, method: Method, guard: Guard) -> Iterator[Reader]:
        """Reads through the hooks that the embedded engine uses."""
        with Attachment(self.model, self.sites, {"guard": (method, guard)}, self.codec.openings) as attachment:
            rules = default_rules(attachment.bound, {"guard": guard.scope})
            taus = attachment.columns.taus([Policy(rules)])

            @torch.no_grad()
            def read(ids: TokenIds) -> tuple[Reading, tuple[float, ...]]:
                last = torch.tensor([len(ids) - 1], device=self.device)
                self.model(input_ids=torch.tensor([ids], device=self.device), logits_to_keep=last, use_cache=False)
                rows = attachment.take(1)
                return attachment.columns.readings(rows.rows_RX, taus, rows.missing)[0]["guard"]

            yield read


def resolve_device(device: str | None) -> torch.device:
    """The device asked for, or CUDA where there is one. Raises UnsupportedModelError when it does not exist."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UnsupportedModelError(f"got device {device!r}, wanted cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if resolved.type not in ("cpu", "cuda") or (resolved.type == "cuda" and (resolved.index or 0) >= count):
        raise UnsupportedModelError(f"got device {device!r}; this machine has cpu and {count} CUDA device(s)")
    return resolved


def resolve_dtype(dtype: str | None, config: Any, device: torch.device) -> torch.dtype:
    """The dtype asked for; by default float32 on CPU and the checkpoint's on CUDA."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise UnsupportedModelError(f"got dtype {dtype!r}, wanted one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    stored = getattr(config, "dtype", None)
    if device.type == "cpu" or not isinstance(stored, torch.dtype) or stored not in DTYPES.values():
        return torch.float32
    return stored


def load_config(folder: Path) -> Any:
    """The model's configuration, refused here, before any weight is read, when the family is not supported."""
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the file may hold anything, and so may what transformers raises
        raise UnsupportedModelError(f"{path}: transformers does not understand it ({error})") from error
    find_family(text_config(config))
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{path}: quantised checkpoints are not supported here; use the unquantised model")
    return config


def text_config(config: Any) -> Any:
    """The configuration of the text model that is loaded: of a model that also sees, of that part alone."""
    if config.model_type not in WRAPPERS:
        return config
    config.text_config.tie_word_embeddings = config.tie_word_embeddings  # which is that of the whole model
    return config.text_config


def _attention(config: Any) -> str:
    """SDPA, but where it leaves out Gemma 2's soft capping of attention scores, or gpt-oss's sinks."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    capped = getattr(config, "attn_logit_softcapping", None)
    return "sdpa" if not capped and MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa else "eager"


def load_model(
    name: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    variables: Mapping[str, Any] | None = None,
    digests: DigestCache | None = None,
) -> LoadedModel:
    """Loads a model folder or hub id.

    `device`: "cpu", "cuda", "cuda:N" or None for CUDA where there is one. `dtype`: a key of DTYPES or None for float32
    on CPU and the checkpoint's dtype on CUDA. `variables` as of `TextCodec`.
    `digests`: where the weights' digest may be known from; without it they are hashed while they are loaded.
    Of a model that also sees the text model alone is loaded. Safetensors only, no remote code.
    Raises UnsupportedModelError.
    """
    where = resolve_device(device)
    folder = resolve_folder(str(name))
    check_files(folder)
    config = load_config(folder)
    text = text_config(config)
    kind = resolve_dtype(dtype, config, where)
    codec = open_codec(folder, config.get_text_config(), variables or {})
    with WeightFiles(folder, digests) as files:
        model = _load(folder, text, kind, where, files, renamed=text is not config)
        model = model.to(where).eval().requires_grad_(False)
        digest = files.digest()
    sites = find_sites(model)
    identity = identify(config, sites, str(kind).removeprefix("torch."), digest, tokenizer_sha256(folder))
    return LoadedModel(model, codec, sites, identity)


def _load(
    folder: Path, config: Any, kind: torch.dtype, where: torch.device, files: WeightFiles, *, renamed: bool
) -> Any:
    """The model of these files and no others, with what its folder says of generation.

    `renamed`: the weights' names are those of a model that also sees. Raises UnsupportedModelError.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        # Without the folder's name: transformers would look there for adapters, and for weights by other names.
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=files.tensors(kind, where),
            dtype=kind,
            attn_implementation=_attention(config),
            key_mapping=dict(TEXT_WEIGHTS) if renamed else None,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model.generation_config = _generation_config(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(f"{folder}: the weights cannot be loaded ({error})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{folder}: {len(missing)} weight(s) are in no .safetensors file, first {missing[0]!r}: transformers would "
            "have made them up; copy the model again"
        )
    if unused := sorted(filter(partial(_is_inside, model), info["unexpected_keys"])):
        raise UnsupportedModelError(
            f"{folder}: {len(unused)} weight(s) belong to layers that run and are not used, first {unused[0]!r}: it is "
            "another model than config.json says; take the files that were saved together"
        )
    return model


def _generation_config(folder: Path) -> Any:
    """What the folder says of generation: in a file of its own, or in config.json, as older models do."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", local_files_only=True, _from_model_config=True
        )


def _is_inside(model: Any, name: str) -> bool:
    """Whether a weight that the model has no place for lies within its layers: a bias, an adapter, a scale, a layer.

    Buffers that older versions of transformers saved are not meant.
    """
    if _BUFFERS.search(name):
        return False
    stacks = [each for each, module in model.named_modules() if isinstance(module, ModuleList)]
    return any(f".{each}." in f".{name}" for each in stacks)
