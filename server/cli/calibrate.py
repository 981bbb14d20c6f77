"""`skillguard calibrate ksd | neuron-adjust | prune`: from examples to an artifact.

Nothing heavy is imported before `run`, so that `--help` is instant.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guards.calibration.options import (
    CommonOptions,
    DetectorOptions,
    KSDOptions,
    NeuronAdjustOptions,
    PooledOptions,
    PruneOptions,
)
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from server.cli.frame import read_frame
from server.engines.errors import EngineFlagError
from server.engines.options import VllmOptions

if TYPE_CHECKING:
    from guards.calibration.activations import Activations
    from guards.calibration.finished import Calibration
    from guards.model.sites import Site

SOURCE_HELP = """\
SRC is LOCATION[?KEY=VALUE[&KEY=LOW..HIGH]][#FIELD]: a .jsonl, .json, .csv or .txt file, or
hf:NAME[:CONFIG]@SPLIT from the Hugging Face hub. Quote it where the shell reads ? and &.
  train.jsonl                         text field found by name: prompt, question, text, instruction
  'mbpp.jsonl?task_id=511..974#text'  rows 511 to 974, field "text"
  'mmlu.csv?subject=abstract_algebra' rows of one subject
  hf:openai/gsm8k:main@train          a hub data set (needs the extra: skillguard[datasets])
"""


def _add_common(parser: argparse.ArgumentParser, options: type[CommonOptions]) -> None:
    default = options()
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
        "--frame",
        action="append",
        dest="frames",
        metavar="FRAME",
        help="chat, bare or a template with {text} such as 'Q: {text}\\nA:'; repeat to cover several "
        "(default: chat where the model has a chat template, else bare)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="fixes splits and draws (default %(default)s)")
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the model: calibrate on what serves it (default %(default)s). With vllm, every flag that\n"
        "is not listed here is vLLM's own, such as --tensor-parallel-size 2 or --enforce-eager",
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


def _add_method(methods: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = methods.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=SOURCE_HELP,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(method=name)
    return parser


def add_parser(subparsers: Any) -> None:
    """Adds `calibrate` and its methods; the parsed arguments go to `run`."""
    parser = subparsers.add_parser(
        "calibrate", help="make a guard from examples of a skill and of the rest", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    methods = parser.add_subparsers(dest="method", required=True, metavar="METHOD")

    ksd = _add_method(methods, "ksd", "Key Space Detection: abstain on prompts whose key vectors are the skill's")
    _add_common(ksd, PooledOptions)
    ksd.add_argument(
        "--variant",
        choices=tuple(KSD_VARIANTS),
        default="pooled",
        help="pooled: a discriminant on the mean key vector of all tokens so far, over one or several layers, which\n"
        "holds in frames that were not calibrated too. paper: a cube around the last token's key vectors, one\n"
        "layer for each frame (default %(default)s)",
    )
    ksd.add_argument("--layer", type=int, help="the only layer (default: what separates best)")
    _add_by_variant(ksd, "--recall", "share of the skill to catch", type=float)
    _add_by_variant(
        ksd, "--max-false-abstention", "share of other prompts that may be refused; wins over --recall", type=float
    )
    _add_by_variant(
        ksd,
        "--placement",
        "tau as small as --recall allows, or midway to what --max-false-abstention allows, which catches more\n"
        "new wordings and refuses more of what no retain source resembles",
        choices=("tight", "middle"),
    )
    ksd.add_argument(
        "--regime",
        choices=("last-token", "all-tokens"),
        default=argparse.SUPPRESS,
        help=f"which tokens of an example a cube is fitted on; with --variant paper (default {KSDOptions().regime})",
    )
    ksd.add_argument(
        "--scope",
        choices=[scope.value for scope in Scope],
        default=PooledOptions().scope.value,
        help="judge the prompt, what the model writes, or both (default %(default)s)",
    )

    adjust = _add_method(methods, "neuron-adjust", "Neuron Adjust: shift the skill's neurons towards other text")
    _add_common(adjust, NeuronAdjustOptions)
    default_na = NeuronAdjustOptions()
    adjust.add_argument(
        "--fraction", type=float, default=default_na.fraction, help="share of neurons adjusted (default %(default)s)"
    )
    adjust.add_argument(
        "--draw",
        choices=("random", "certain"),
        default=default_na.draw,
        help="shift by chance as in the paper, or always where it applies (default %(default)s)",
    )

    prune = _add_method(methods, "prune", "Selective Pruning: set the skill's neurons to zero")
    _add_common(prune, PruneOptions)
    default_prune = PruneOptions()
    prune.add_argument(
        "--fraction",
        type=float,
        default=default_prune.fraction,
        help="share of all feed-forward neurons that each step prunes (default %(default)s)",
    )
    prune.add_argument(
        "--attention-fraction",
        type=float,
        default=default_prune.attention_fraction,
        help="share of all attention neurons that each step prunes; less selective (default %(default)s)",
    )
    prune.add_argument(
        "--steps",
        type=int,
        default=default_prune.steps,
        help="how often to measure and prune again, each as costly as the first (default %(default)s)",
    )
    prune.add_argument(
        "--importance",
        choices=("abs", "freq", "rms", "std"),
        default=default_prune.importance,
        help="what of a neuron's output is compared: mean size, how often it is positive, root mean square,\n"
        "or deviation (default %(default)s)",
    )


KSD_VARIANTS: dict[str, type[DetectorOptions]] = {"pooled": PooledOptions, "paper": KSDOptions}


def _add_by_variant(parser: argparse.ArgumentParser, flag: str, meaning: str, **settings: Any) -> None:
    """An argument of both variants whose default each variant's options hold."""
    field = flag.removeprefix("--").replace("-", "_")
    defaults = ", ".join(f"{name} {getattr(kind(), field)}" for name, kind in KSD_VARIANTS.items())
    parser.add_argument(flag, default=argparse.SUPPRESS, help=f"{meaning} (default: {defaults})", **settings)


OPTIONS: dict[str, type[CommonOptions]] = {
    "neuron-adjust": NeuronAdjustOptions,
    "prune": PruneOptions,
}
"""What each method's arguments become."""


def _options(kind: type[Any], args: argparse.Namespace) -> Any:
    """The frozen options from the parsed arguments of the same names."""
    values = {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}
    values["frames"] = tuple(map(read_frame, args.frames or ()))
    if "scope" in values:
        values["scope"] = Scope(values["scope"])
    return kind(**values, progress=True)


def vllm_options(args: argparse.Namespace) -> VllmOptions:
    """What vLLM is started with. Raises EngineFlagError for an argument of ours that vLLM has in its own words."""
    for value, flag, instead in (
        (args.device, "--device", "vLLM runs on the device it was built for"),
        (args.batch_tokens, "--batch-tokens", "vLLM's own --max-num-batched-tokens says that"),
    ):
        if value is not None:
            raise EngineFlagError(f"{flag}: not with --engine vllm; {instead}")
    flags = [*args.engine_flags, *(("--dtype", args.dtype) if args.dtype else ())]
    return VllmOptions(model=args.model, flags=tuple(flags), allow_untested_runner=args.allow_untested_runner)


def _sites(options: CommonOptions) -> "tuple[Site, ...]":
    """What a calibration looks at."""
    from guards.model.sites import Site

    if isinstance(options, NeuronAdjustOptions):
        return (Site.PRE_ACTIVATION,)
    if isinstance(options, PruneOptions) and options.attention_fraction:
        return (Site.KEY, Site.ATTENTION)
    return (Site.KEY,)


def _open_model(args: argparse.Namespace, calibration: CommonOptions) -> "AbstractContextManager[Activations]":
    """The model, run by the engine asked for."""
    from guards.inside.transformers.loading import load_model

    if args.engine == "transformers":
        return nullcontext(load_model(args.model, args.device, args.dtype))
    options = vllm_options(args)
    try:
        from server.engines.vllm.capture import VllmActivations
    except ModuleNotFoundError as error:
        raise CalibrationError("--engine vllm: vLLM is not installed; pip install 'skillguard[vllm]'") from error
    return VllmActivations(options, *_sites(calibration))


def run(args: argparse.Namespace) -> int:
    """Calibrates, writes artifact and report, prints a summary; returns the exit status. Raises SkillguardError."""
    if args.engine == "transformers" and args.engine_flags:
        flags = " ".join(args.engine_flags)
        raise EngineFlagError(f"{flags}: engine transformers has no such flag; vLLM's need --engine vllm")
    if args.method == "ksd" and args.variant == "pooled" and hasattr(args, "regime"):
        raise CalibrationError("--regime: the mean key vector is over all tokens; it needs --variant paper")
    kind = KSD_VARIANTS[args.variant] if args.method == "ksd" else OPTIONS[args.method]
    options = _options(kind, args)

    from guards.calibration.finished import refuse_output
    from guards.calibration.report import refuse_report_folder, report_folder, report_of, write_report
    from guards.calibration.sources import read_source
    from guards.methods.cube.calibrate import calibrate_ksd
    from guards.methods.neuron_adjust.calibrate import calibrate_neuron_adjust
    from guards.methods.pooled.calibrate import calibrate_pooled
    from guards.methods.selective_pruning.calibrate import calibrate_prune
    from server.cli.calibration_summary import print_summary

    refuse_output(args.output, args.skill)
    beside = report_folder(args.output)
    refuse_report_folder(beside)
    if args.plots:
        from guards.calibration.plots import require_matplotlib

        require_matplotlib()
    forget, retain = (
        [read_source(spec, field=args.field, limit=args.limit, seed=args.seed) for spec in specs]
        for specs in (args.forget, args.retain)
    )
    result: Calibration
    plots: dict[str, bytes] = {}
    with _open_model(args, options) as model:
        if args.method == "ksd":
            calibrate = calibrate_pooled if args.variant == "pooled" else calibrate_ksd
            result = found = calibrate(model, forget, retain, options)
            if args.plots:
                from guards.calibration.plots import ksd_plots

                plots = ksd_plots(found, args.skill)
        elif args.method == "prune":
            result = calibrate_prune(model, forget, retain, options)
            if args.plots:
                from guards.calibration.plots import prune_plots

                plots = prune_plots(result, args.skill)
        else:
            result = calibrate_neuron_adjust(model, forget, retain, options)
            if args.plots:
                from guards.calibration.plots import neuron_adjust_plots

                plots = neuron_adjust_plots(model, result, forget, retain, args.skill)
    digest = result.save(args.output, args.skill)
    write_report(beside, report_of(result, args.skill), plots)
    engine = ("--engine", "vllm", *vllm_options(args).flags) if args.engine == "vllm" else ()
    print_summary(
        result, skill=args.skill, model=args.model, output=args.output, report=beside, digest=digest, flags=engine
    )
    return 0
