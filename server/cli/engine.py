"""Which engine a command runs, and whose flag is whose. Imports an engine only to create it."""

import argparse
import os
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from server.cli.fields import add_fields, build_settings
from server.config import ServerConfig
from server.demo import with_demo
from server.engines.errors import EngineFlagError
from server.engines.options import EmbeddedOptions, VllmOptions
from server.refused_names import CONFIG_VARIABLE
from server.settings import SECTIONS, Choice, Effective, load

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
    group = parser.add_argument_group("model and guards")
    add_fields(group, Choice, "engine")
    add_fields(group, EmbeddedOptions, *_SHARED)
    if may_be_unguarded:
        add_fields(group, Choice, "unguarded")
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


def refuse_engine_flags(args: argparse.Namespace) -> None:
    """Raises EngineFlagError for flags that are not ours, where no engine takes any: mistyped ones, or vLLM's."""
    if args.engine_flags:
        flag, *_ = args.engine_flags
        near = get_close_matches(flag.partition("=")[0], args.own_flags, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise EngineFlagError(
            f"{' '.join(args.engine_flags)}: engine transformers has no such flag; {meant}vLLM's need --engine vllm"
        )


def given_options(engine: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of an engine's options.

    Raises EngineFlagError for a flag that the engine does not have.
    """
    flags = tuple(args.engine_flags)
    if engine != "vllm":
        refuse_engine_flags(args)
        for name in _ONLY_VLLM:
            if hasattr(args, name):
                raise EngineFlagError(f"{_flag(name)}: needs --engine vllm")
        return {name: getattr(args, name) for name in EmbeddedOptions.model_fields if hasattr(args, name)}
    for name in _ONLY_EMBEDDED:
        if hasattr(args, name) and name not in _SAME_ON_VLLM:
            instead = f"; vLLM calls it {_ON_VLLM[name]}" if name in _ON_VLLM else ""
            raise EngineFlagError(f"{_flag(name)}: belongs to engine transformers{instead}")
    for name in _SAME_ON_VLLM:
        if hasattr(args, name):
            flags = (_flag(name), getattr(args, name), *flags)
    given = {name: getattr(args, name) for name in VllmOptions.model_fields if hasattr(args, name)}
    return {**given, "flags": flags} if flags else given


def engine_options(args: argparse.Namespace) -> EmbeddedOptions | VllmOptions:
    """The chosen engine's settings, of the command line alone. Raises what `given_options` and `with_demo` raise."""
    engine = build_settings(Choice, args).engine
    made = argparse.Namespace(**with_demo(engine, given_options(engine, args), unguarded=False))
    return build_settings(VllmOptions, made) if engine == "vllm" else build_settings(EmbeddedOptions, made)


def effective_settings(args: argparse.Namespace) -> Effective:
    """What `serve` has to go by: flags over the environment over the file. Raises what `load` raises."""

    def flags_of(engine: str) -> dict[str, Any]:
        layer: dict[str, Any] = {"unguarded": True} if hasattr(args, "unguarded") else {}
        layer["server"] = {name: getattr(args, name) for name in ServerConfig.model_fields if hasattr(args, name)}
        layer[engine if engine in SECTIONS else "transformers"] = given_options(engine, args)
        return layer

    named = args.config or os.environ.get(CONFIG_VARIABLE)
    return load(getattr(args, "engine", None), flags_of, Path(named) if named else None)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
