"""Which engine a command runs, and whose flag is whose. Imports an engine only to create it."""

import argparse
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.fields import add_fields, build_settings
from server.engines.errors import EngineFlagError
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError

if TYPE_CHECKING:
    pass

DEMO = Path(__file__).resolve().parents[2] / "artifacts" / "demo"
DEMO_GUARD = "ksd-mathematics"
DEMO_DTYPE = "float32"

_SHARED = [name for name in EmbeddedOptions.model_fields if name in VllmOptions.model_fields]
_ONLY_EMBEDDED = [name for name in EmbeddedOptions.model_fields if name not in _SHARED]
_ONLY_VLLM = [name for name in VllmOptions.model_fields if name not in (*_SHARED, "flags")]
_ON_VLLM = {
    "max_model_tokens": "--max-model-len",
    "max_running": "--max-num-seqs",
    "max_batch_tokens": "--max-num-batched-tokens",
    "kv_cache_tokens": "--kv-cache-memory-bytes",
}
"""Our options for the embedded engine -> vLLM's flag of that meaning."""
_SAME_ON_VLLM = ("dtype", "generation_config")
"""Those that vLLM calls the same."""
_FLAG = re.compile(r"(--?[A-Za-z][^\s=]*)(=.*)?", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser, *, may_be_unguarded: bool = True) -> None:
    """Adds the choice of the engine and the options of each."""
    parser.set_defaults(unguarded=False)
    group = parser.add_argument_group("model and guards")
    group.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="What runs the model; vllm must be installed (default: %(default)s).",
    )
    add_fields(group, EmbeddedOptions, *_SHARED)
    if may_be_unguarded:
        group.add_argument(
            "--unguarded", action="store_true", help="Serve without any guard; otherwise serving none is an error."
        )
    add_fields(parser.add_argument_group("engine transformers"), EmbeddedOptions, *_ONLY_EMBEDDED)
    flags = (
        "--dtype, --generation-config, and every flag that is not listed here, go to vLLM. `skillguard serve --engine "
        "vllm --help=all` lists vLLM's flags, `--help=max-num-seqs` explains one."
    )
    add_fields(parser.add_argument_group("engine vllm", flags), VllmOptions, *_ONLY_VLLM)


def own_flags(parser: argparse.ArgumentParser, command: str) -> set[str]:
    """Every flag that a command of ours knows, those of its subcommands included."""
    found: set[str] = set()

    def visit(node: argparse.ArgumentParser) -> None:
        for action in node._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    visit(child)

    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    visit(commands.choices[command])
    return found


def split_flags(argv: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Our words, and those for the engine. A word that is no flag belongs to the flag before it.

    argparse cannot do this: it takes `--flag={"a": 1}` for a value because of the space, and an option of ours that
    takes several values would swallow it.
    """
    ours: list[str] = []
    theirs: list[str] = []
    owner = ours
    for word in argv:
        if flag := _FLAG.fullmatch(word):
            name = flag[1].replace("_", "-")  # as vLLM reads its own
            owner = ours if name in own and not word.startswith("--help=") else theirs
            word = name + (flag[2] or "") if owner is ours else word
        owner.append(word)
    return ours, theirs


def demo_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """What is served where nothing was named. Raises ConfigError for a guard-less server that was not asked for."""
    fixed: dict[str, Any] = {}
    if not hasattr(args, "model"):
        fixed = {"model": str(DEMO / "model"), "served_name": getattr(args, "served_name", "skillguard-demo")}
    if args.unguarded and hasattr(args, "artifacts"):
        raise ConfigError("--unguarded: got --artifacts as well; give one of them")
    if not args.unguarded and not hasattr(args, "artifacts"):
        if hasattr(args, "model"):
            raise ConfigError(
                "--artifacts: got none, so nothing would be guarded; name artifact folders "
                "(`skillguard calibrate` makes them), or say --unguarded"
            )
        fixed["artifacts"] = (DEMO / "guards" / DEMO_GUARD,)
    return fixed


def engine_options(args: argparse.Namespace) -> EmbeddedOptions | VllmOptions:
    """The chosen engine's settings. Raises ConfigError; EngineFlagError for a flag that the engine does not have."""
    flags, fixed = tuple(args.engine_flags), demo_defaults(args)
    if args.engine == "transformers":
        if flags:
            raise EngineFlagError(f"{' '.join(flags)}: engine transformers has no such flag; vLLM's need --engine vllm")
        for name in _ONLY_VLLM:
            if hasattr(args, name):
                raise EngineFlagError(f"--{name.replace('_', '-')}: needs --engine vllm")
        return build_settings(EmbeddedOptions, args, **fixed)
    for name in _ONLY_EMBEDDED:
        if hasattr(args, name) and name not in _SAME_ON_VLLM:
            instead = f"; vLLM calls it {_ON_VLLM[name]}" if name in _ON_VLLM else ""
            raise EngineFlagError(f"--{name.replace('_', '-')}: belongs to engine transformers{instead}")
    # vLLM's own default is a 16-bit format even for a float32 model, which the demo's artifacts would not fit.
    if not (hasattr(args, "model") or hasattr(args, "dtype")):
        flags = ("--dtype", DEMO_DTYPE, *flags)
    for name in _SAME_ON_VLLM:
        if hasattr(args, name):
            flags = (f"--{name.replace('_', '-')}", getattr(args, name), *flags)
    return build_settings(VllmOptions, args, **fixed, flags=flags)
