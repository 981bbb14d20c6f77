"""`skillguard calibrate METHOD`: from examples to an artifact. Methods and their options come from the registry.

Nothing heavy is imported before `run`, so that `--help` is instant.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, fields, replace
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from guards.calibration.entry import Entry
from guards.calibration.options import CommonOptions
from guards.errors import CalibrationError
from guards.methods.registry import names, variants
from server.cli.engine import refuse_engine_flags
from server.cli.flags import as_flags
from server.cli.frame import read_frame
from server.create import require_vllm
from server.engines.errors import EngineFlagError
from server.engines.options import VllmOptions

if TYPE_CHECKING:
    from guards.calibration.activations import Activations

SOURCE_HELP = """\
SRC is LOCATION[?KEY=VALUE[&KEY=LOW..HIGH]][#FIELD]. LOCATION is a .jsonl, .ndjson, .json, .csv, .tsv or .txt
file, compressed or not (.gz, .bz2, .xz, .zst), a .parquet or .arrow file, a folder of such files
(FOLDER@SPLIT where it has several splits), or hf:NAME[:CONFIG]@SPLIT from the Hugging Face hub.
Quote it where the shell reads ? and &.
  train.jsonl                         text field found by name: prompt, question, text, instruction (with input),
                                      and the last user's message of messages, conversations,
                                      conversation or chosen
  'mbpp.jsonl?task_id=511..974#text'  rows 511 to 974, field "text"
  'mmlu.csv?subject=abstract_algebra' rows of one subject
  my-data@train                       the files of a folder with "train" in their names
  hf:openai/gsm8k:main@train          a hub data set (needs the extra: skillguard[datasets])
"""


def _variables(text: str) -> dict[str, Any]:
    """A JSON object, as argparse reads it."""
    try:
        read = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a JSON object ({error})") from error
    if not isinstance(read, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a JSON object")
    return read


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _own_fields(entry: Entry) -> dict[str, "Field[Any]"]:
    """The options that a method has beside those that all have."""
    common = {each.name for each in fields(CommonOptions)}
    return {each.name: each for each in fields(entry.options) if each.name not in common}


def _add_common(parser: argparse.ArgumentParser, entries: Mapping[str, Entry]) -> None:
    parser.add_argument("--model", required=True, help="model folder, or a Hugging Face hub id")
    parser.add_argument("--skill", required=True, help="name of the skill, as clients and metrics see it")
    parser.add_argument("--forget", required=True, action="append", metavar="SRC", help="examples of the skill")
    parser.add_argument("--retain", required=True, action="append", metavar="SRC", help="examples of the rest")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="artifact folder; a report goes to FOLDER-report"
    )
    parser.add_argument("--field", help="text field of every source that names none with #FIELD")
    parser.add_argument("--limit", type=int, help="at most this many examples of each source, drawn by --seed")
    parser.add_argument(
        "--cut",
        action="store_true",
        help="take what fits of examples that are longer than the model's context; otherwise they are left out",
    )
    frames = _by_variant({variant: entry.options.usual_frames for variant, entry in entries.items()})
    parser.add_argument(
        "--frame",
        action="append",
        dest="frames",
        metavar="FRAME",
        help="chat, bare or a template with {text} such as 'Q: {text}\\nA:'; repeat to cover several\n"
        f"(default: {frames})",
    )
    parser.add_argument(
        "--seed", type=int, default=CommonOptions().seed, help="fixes splits and draws (default %(default)s)"
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the model: calibrate on what serves it (default %(default)s). With vllm, every flag that\n"
        "is not listed here is vLLM's own, such as --tensor-parallel-size 2 or --enforce-eager",
    )
    parser.add_argument(
        "--chat-template-kwargs",
        type=_variables,
        default={},
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}': those that it is served with",
    )
    parser.add_argument("--batch-tokens", type=int, help="tokens per forward pass (default: what suits the device)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="calibrate in the serving dtype")
    parser.add_argument(
        "--allow-untested-runner",
        action="store_true",
        help="with vllm: take a model runner that guards were not tested with",
    )
    parser.add_argument("--plots", action="store_true", help="draw PNGs too (needs the extra: skillguard[plots])")


def _by_variant(values: Mapping[str, object]) -> str:
    """One value where all variants have the same, else each with its name."""
    if len(set(values.values())) == 1:
        return str(next(iter(values.values())))
    return "; ".join(f"{variant}: {value}" for variant, value in values.items())


def _add_option(parser: argparse.ArgumentParser, name: str, entries: Mapping[str, Entry]) -> None:
    """One flag for an option of some variants of a method; what is not given is left to their defaults."""
    having = {variant: entry for variant, entry in entries.items() if name in _own_fields(entry)}
    first = next(iter(having.values()))
    text = as_flags(str(_own_fields(first)[name].metadata["help"])).replace("%", "%%")
    if len(having) < len(entries):
        text += f"; with --variant {' or '.join(having)}"
    defaults = {variant: _own_fields(entry)[name].default for variant, entry in having.items()}
    if any(default is not None for default in defaults.values()):
        text += f" (default: {_by_variant(defaults)})"
    values = _values(get_type_hints(first.options)[name])
    parser.add_argument(_flag(name), default=argparse.SUPPRESS, help=text, **values)


def _values(kind: Any) -> dict[str, Any]:
    """How argparse reads values of a type."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"choices": [each.value for each in kind]}
    return {"type": kind}


def _add_method(methods: Any, name: str) -> None:
    entries = variants(name)
    summary = next(iter(entries.values())).summary
    parser: argparse.ArgumentParser = methods.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=SOURCE_HELP,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.set_defaults(method=name, variant=next(iter(entries)))
    _add_common(parser, entries)
    if len(entries) > 1:
        about = "\n".join(f"{variant}: {entry.about}" for variant, entry in entries.items())
        parser.add_argument("--variant", choices=tuple(entries), help=f"{about}\n(default %(default)s)")
    for option in dict.fromkeys(option for entry in entries.values() for option in _own_fields(entry)):
        _add_option(parser, option, entries)


def add_parser(subparsers: Any) -> None:
    """Adds `calibrate` and its methods; the parsed arguments go to `run`."""
    parser = subparsers.add_parser("calibrate", help="make a guard from examples of a skill and of the rest")
    parser.set_defaults(run=run)
    methods = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
    for name in names():
        _add_method(methods, name)


def _options(entry: Entry, args: argparse.Namespace) -> CommonOptions:
    """The frozen options from the parsed arguments of the same names.

    Raises CalibrationError for a flag of another variant.
    """
    own = _own_fields(entry)
    for other in variants(entry.name).values():
        for name in _own_fields(other):
            if hasattr(args, name) and name not in own:
                raise CalibrationError(
                    f"{_flag(name)}: variant {entry.variant} has no such option; it needs --variant {other.variant}"
                )
    kinds = get_type_hints(entry.options)
    values = {
        each.name: getattr(args, each.name)
        for each in fields(entry.options)
        if getattr(args, each.name, None) is not None
    }
    values = {
        name: kinds[name](value) if isinstance(kinds[name], type) and issubclass(kinds[name], StrEnum) else value
        for name, value in values.items()
    }
    values["frames"] = tuple(map(read_frame, args.frames or ()))
    return entry.options(**{**values, "progress": True})


def vllm_options(args: argparse.Namespace) -> VllmOptions:
    """What vLLM is started with. Raises EngineFlagError for an argument of ours that vLLM has in its own words."""
    for value, flag, instead in (
        (args.device, "--device", "vLLM runs on the device it was built for"),
        (args.batch_tokens, "--batch-tokens", "vLLM's own --max-num-batched-tokens says that"),
    ):
        if value is not None:
            raise EngineFlagError(f"{flag}: not with --engine vllm; {instead}")
    flags = [*args.engine_flags, *(("--dtype", args.dtype) if args.dtype else ())]
    return VllmOptions(
        model=args.model,
        flags=tuple(flags),
        allow_untested_runner=args.allow_untested_runner,
        chat_template_kwargs=args.chat_template_kwargs,
    )


def _open_model(
    args: argparse.Namespace, entry: Entry, options: CommonOptions
) -> "AbstractContextManager[Activations]":
    """The model, run by the engine asked for."""
    from guards.inside.transformers.loading import load_model

    if args.engine == "transformers":
        return nullcontext(load_model(args.model, args.device, args.dtype, args.chat_template_kwargs))
    engine = vllm_options(args)
    require_vllm()
    from server.engines.vllm.capture import VllmActivations

    return VllmActivations(engine, *entry.sites(options))


def _takes(options: CommonOptions, name: str, value: object) -> bool:
    """Whether there is such an option, not given yet, that may have this value beside the others."""
    try:
        replace(options, **{name: value})  # type: ignore[arg-type]
    except (TypeError, CalibrationError):
        return False
    return bool(getattr(options, name) != value)


def _out_of_memory(error: Exception, options: CommonOptions, engine: str) -> str:
    """What happened, and those options that need less. Passes of many tokens say so themselves, and what to lower."""
    less: list[str] = []
    if getattr(options, "layer", None) is None and _takes(options, "layer", 0):
        less.append("name one `layer`")
    if _takes(options, "site", "residual"):
        less.append("take `site` residual, which is narrower")
    reason = str(error).partition(". ")[0]
    if engine == "transformers":
        less.append("lower `batch_tokens`")
    device = "give a device with more memory"
    return f"out of memory ({reason}): {', '.join([*less, f'or {device}']) if less else device}"


def run(args: argparse.Namespace) -> int:
    """Calibrates, writes artifact and report, prints a summary; returns the exit status. Raises SkillguardError."""
    if args.engine == "transformers":
        refuse_engine_flags(args)
    entry = variants(args.method)[args.variant]
    options = _options(entry, args)

    from guards.calibration.finished import held_output, refuse_output
    from guards.calibration.report import refuse_report_folder, report_folder

    refuse_output(args.output, args.skill)
    refuse_report_folder(report_folder(args.output))
    if args.plots:
        from guards.calibration.drawing import require_matplotlib

        require_matplotlib()
    with held_output(args.output):
        _calibrate(args, entry, options)
    return 0


def _calibrate(args: argparse.Namespace, entry: Entry, options: CommonOptions) -> None:
    """All of `run` that takes time. What was calibrated is written before anything is drawn of it."""
    import torch

    from guards.calibration.cutting import cut_sources
    from guards.calibration.report import report_folder, report_of, write_report
    from guards.calibration.sources import read_source
    from server.cli.calibration_summary import print_summary

    forget, retain = (
        [read_source(spec, field=args.field, limit=args.limit, seed=args.seed) for spec in specs]
        for specs in (args.forget, args.retain)
    )
    beside = report_folder(args.output)
    try:
        with _open_model(args, entry, options) as model:
            if args.cut:
                forget, retain = (cut_sources(sources, model, options) for sources in (forget, retain))
            result = entry.calibrate(model, forget, retain, options)
            digest = result.save(args.output, args.skill)
            report = report_of(result, args.skill, digest, entry.report(result))
            write_report(beside, report, {})
            if args.plots:
                try:
                    write_report(beside, report, entry.plots(result, args.skill, model, forget, retain))
                except Exception as error:  # whatever it is, hours of work are written
                    why = f"{type(error).__name__}: {error}"
                    print(f"warning: no plots ({why}); artifact and report are written", file=sys.stderr)
    except torch.OutOfMemoryError as error:
        raise CalibrationError(_out_of_memory(error, options, args.engine)) from error
    engine = ("--engine", "vllm", *vllm_options(args).flags) if args.engine == "vllm" else ()
    given = args.chat_template_kwargs
    variables = ("--chat-template-kwargs", json.dumps(given)) if given else ()
    print_summary(
        result,
        entry.table(result),
        skill=args.skill,
        model=args.model,
        output=args.output,
        report=beside,
        digest=digest,
        flags=(*engine, *variables),
    )
