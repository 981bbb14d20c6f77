"""Whether a server would start, as far as that shows without loading weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from guards.artifact.canaries import text_difference
from guards.artifact.identity import refuse_mismatch, tokenizer_sha256
from guards.artifact.pins import shown_digest, vouched
from guards.artifact.signatures import trusted_by
from guards.contract.combination import beside
from guards.core.policy import Rule
from guards.core.verdict import GuardKind, GuardMode
from guards.errors import ArtifactMismatchError, SkillguardError
from guards.inside.transformers.loading import DTYPES, load_config, resolve_device, resolve_dtype
from guards.methods.loaded import LoadedGuard, read_guards
from guards.model.digests import DigestCache
from guards.model.encoding import TextCodec
from guards.model.folder import local_folder, open_codec
from guards.model.weights import weights_sha256
from server.audit.folder import is_held
from server.combinations import combined
from server.create import create_engine
from server.engines.options import EmbeddedOptions, VllmOptions
from server.policies import require_known, require_shadowable, require_tenants
from server.settings import Effective
from server.tenants import Tenants, read_tenants
from server.tracing import make_tracer


@dataclass
class Preflight:
    """What was found: sentences for a person, and what would keep the server from starting."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """The result, or None where it raised, which is a problem."""
        try:
            return work()
        except SkillguardError as error:
            self.problems.append(str(error))
            return None


@dataclass(frozen=True)
class _Read:
    """A guard that was read and does not run."""

    name: str
    kind: GuardKind
    rule: Rule


def inspect_start(settings: Effective) -> Preflight:
    """Reads keys, artifacts and the model's folder, looks for the audit log's, and parses the engine's flags.

    Loads no weights, and writes nothing but the digest of the weights' files, for later starts; with `rehash` not that.
    """
    found, options = Preflight(), settings.options
    tenants = None
    if (keys := settings.server.api_keys_file) is not None:
        tenants = found.attempt(lambda: read_tenants(keys))
    guards: dict[str, LoadedGuard] | None = found.attempt(
        lambda: read_guards(options.artifacts, trusted=trusted_by(options.trusted_key_files))
    )
    if guards is not None:
        # With the artifacts sound, what is left for the engine to refuse is its flags.
        engine = found.attempt(lambda: create_engine(options))
        read = [
            _Read(name, each.method.kind, Rule(GuardMode.ENFORCE, each.guard.scope, each.bound.taus))
            for name, each in guards.items()
        ]
        found.attempt(lambda: require_shadowable(read, settings.server.shadow, "shadow"))
        found.attempt(lambda: require_known(read, settings.server.audit_scores, "audit_scores"))
        if tenants is not None:
            found.attempt(lambda: require_tenants(read, tenants))
        _inspect_model(found, options, guards)
        if engine is not None:  # which refuses those that cannot be served together
            found.lines += combined(beside({name: each.bound for name, each in guards.items()}))
    if tenants is not None:
        _tell_tenants(found, tenants)
    if (folder := settings.server.audit_dir) is not None:
        _inspect_audit(found, folder)
    found.attempt(lambda: make_tracer(guard_events=settings.server.trace_guards).shutdown())
    return found


def _tell_tenants(found: Preflight, tenants: Tenants) -> None:
    for name, tenant in tenants.tenants.items():
        found.lines.append(f"tenant {name}: {len(tenant.keys)} keys")


def _inspect_audit(found: Preflight, folder: Path) -> None:
    """A server that writes there is no error of the settings: it may be the one that these are checked for."""
    held = found.attempt(lambda: is_held(folder))
    if held is None:
        return
    found.lines.append(f"audit_dir {folder}: is there and can be written")
    if held:
        found.lines.append(f"audit_dir {folder}: another server writes there now; this one starts once that has ended")


def _inspect_model(found: Preflight, options: EmbeddedOptions | VllmOptions, guards: Mapping[str, LoadedGuard]) -> None:
    folder: Path | bool | None = found.attempt(lambda: local_folder(options.model) or False)
    model = None
    if isinstance(folder, Path):
        model = found.attempt(lambda: _read_model(folder, options))
    elif folder is False:
        found.lines.append(f"model {options.model}: is no folder here, so what depends on it shows at the start only")
    for name, guard in guards.items():
        bound = "not compared with the model"
        if model is not None:
            fits = found.attempt(partial(_require_fit, guard, *model, accepted=options.accept_template))
            bound = "fits the model" if fits else "DOES NOT FIT the model"
        skill, digest = guard.artifact.manifest.skill, shown_digest(guard.artifact.digest)
        trust = vouched(guard.pinned, guard.signed_by)
        found.lines.append(f"guard {name}: {guard.method.name}, skill {skill}, {digest}{trust}, {bound}")


def _read_model(folder: Path, options: EmbeddedOptions | VllmOptions) -> tuple[TextCodec, dict[str, Any]]:
    """The codec, after all that engines check of a folder before they load weights, and what is known of the identity.

    The weights' files are read for their digest, which takes as long as copying them.
    """
    if isinstance(options, EmbeddedOptions):
        config = load_config(folder)
        kind = resolve_dtype(options.dtype, config, resolve_device(options.device))
        dtype = {"dtype": str(kind).removeprefix("torch.")}
    else:  # a quantised checkpoint is vLLM's to take, and so is the number format where no flag says it
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        dtype = {"dtype": said} if (said := _said_dtype(options.flags)) in DTYPES else {}
    codec = open_codec(folder, config.get_text_config(), options.chat_template_kwargs)
    known = {
        "architecture": (config.architectures or ["?"])[0],
        "weights_sha256": weights_sha256(folder, None if options.rehash else DigestCache()),
        "tokenizer_sha256": tokenizer_sha256(folder),
    }
    return codec, known | dtype


def _said_dtype(flags: Sequence[str]) -> str | None:
    """The last one holds, as in vLLM's parser."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    said = [after for flag, after in pairwise(words) if flag == "--dtype"]
    return said[-1] if said else None


def _require_fit(guard: LoadedGuard, codec: TextCodec, known: Mapping[str, Any], *, accepted: bool) -> bool:
    """True. Raises ArtifactMismatchError where the artifact is of another model, template or tokenizer."""
    manifest = guard.artifact.manifest
    refuse_mismatch(guard.artifact, manifest.model.model_copy(update=dict(known)))
    difference = None if accepted else text_difference(manifest, codec)
    if difference is not None:
        raise ArtifactMismatchError(
            f"{guard.artifact.name}: {difference}: the chat template or the tokenizer is not the calibrated one; "
            "calibrate again with it, or take it with --accept-template"
        )
    return True
