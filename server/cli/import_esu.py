"""`skillguard import-esu`: ESU's published parameter files as artifacts.

Nothing heavy is imported before `run`, so that `--help` is instant.
"""

import argparse
from pathlib import Path
from typing import Any

from server.cli.frame import read_frame

EPILOG = """\
Without --model the artifact is not bound to weights: it can be inspected, and `serve` refuses it.
With --model it is bound, and canaries are taken from --forget and --retain, whose form is that of `calibrate`.
"""


def add_parser(subparsers: Any) -> None:
    """Adds `import-esu`; the parsed arguments go to `run`."""
    parser = subparsers.add_parser(
        "import-esu",
        help="convert the parameter files that ESU's authors published for Llama-3-8B",
        epilog=EPILOG,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a published .npz or .pkl; nothing in it is run")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="artifact folder")
    parser.add_argument("--skill", help="name of the skill (default: the one in the file's name, in lower case)")
    parser.add_argument(
        "--kind",
        choices=("auto", "ksd", "neuron-adjust"),
        default="auto",
        help="refuse a file of the other method (default %(default)s)",
    )
    parser.add_argument("--alpha", type=float, help="tau over k of a cube (default: the authors' for this skill)")
    parser.add_argument(
        "--regime",
        choices=("last-token", "all-tokens"),
        help="which tokens a cube was fitted on (default: the authors' for this skill)",
    )
    parser.add_argument(
        "--frame", help="chat, bare or a template with {text}: what surrounded the texts (default: the authors')"
    )
    parser.add_argument("--model", help="bind to this model: a folder, or a Hugging Face hub id")
    parser.add_argument("--forget", action="append", default=[], metavar="SRC", help="prompts of the skill")
    parser.add_argument("--retain", action="append", default=[], metavar="SRC", help="prompts of the rest")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Converts one file, binds it where a model is given; returns the exit status. Raises SkillguardError."""
    from guards.artifact.store import read_artifact
    from guards.calibration.finished import refuse_output
    from guards.calibration.sources import read_source
    from guards.errors import ArtifactError, DataError
    from guards.esu.convert import ImportOptions, bind, import_esu
    from guards.esu.files import read_esu
    from guards.inside.transformers.loading import load_model
    from guards.methods.registry import load_guard

    if (args.model is None) == bool(args.forget or args.retain) or bool(args.forget) != bool(args.retain):
        raise DataError("give --model, --forget and --retain together to bind the artifact, or none of them")
    file = read_esu(args.file)
    skill = args.skill or (file.skill or "").lower()
    if not skill:
        raise ArtifactError(f"{file.name}: its name tells no skill: give --skill")
    refuse_output(args.output, skill)
    frame = args.frame and read_frame(args.frame)
    options = ImportOptions(kind=args.kind, alpha=args.alpha, regime=args.regime, frame=frame)
    result = import_esu(file, options)
    if args.model is not None:
        forget, retain = ([read_source(spec) for spec in specs] for specs in (args.forget, args.retain))
        loaded = load_model(args.model, args.device, result.identity.dtype)
        result = bind(result, loaded, forget, retain)
    digest = result.save(args.output, skill)
    load_guard(read_artifact(args.output))
    print(f"{args.output}: {result.method.name} guard for skill {skill!r}, digest {digest[:12]}")
    for note in result.record.notes:
        print(f"  {note}")
    bound = result.identity.weights_sha256 is not None
    print("  bound to the model's weights" if bound else "  not bound to weights: `serve` refuses it")
    return 0
