"""`skillguard evaluate`: what guards take away and what they leave, on benchmarks and on files of one's own.

Nothing heavy is imported before `run`, so that `--help` is instant.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.client import add_key_file, read_key
from server.cli.engine import add_arguments, engine_options
from server.cli.fields import add_fields, build_settings
from server.cli.frame import read_frame
from server.demo import DEMO
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError
from server.evaluation.options import EvaluationOptions, ToxicityOptions
from server.settings import Choice

if TYPE_CHECKING:
    from server.evaluation.arms import Arm

DECIDING = {
    *("device", "dtype", "flags", "max_model_tokens", "generation_config"),
    *("judge", "chat_template_kwargs", "accept_template"),
}
"""Options of either engine that may change an answer; of generation_config its end tokens do."""
EPILOG = """\
KIND[:LABEL]=SRC is one column of the table; SRC is a file or hub data set as `calibrate` takes it.
  gsm8k       number after "The answer is"; 8 shots where --shots names the training split
  mbpp        runs the code with the task's tests, in a sandbox; 3 shots
  mmlu        most likely of A to D as the first token; 5 shots of the same subject
  mmlu-text   the letter that the model writes
  choices     the same of 2 to 20 choices; LABEL is the skill (default: the file's name)
  tofu        the question's whole answer; what counts is the Deviation Score; LABEL is the skill
  toxicity    toxicity of the answer, by --toxicity-model or --toxicity-words; LABEL is the skill (default: toxicity)
  mlqa, xquad gold answer within 24 greedy tokens; LABEL is the language (default: the file's name)
  prompts     fields prompt and answer, judged by --match; LABEL is the skill (default: the file's name)
A guard is to forget the suites whose skill or label is its own skill (gsm8k: mathematics, mbpp: code).

  skillguard evaluate --model ./my-model --artifacts ./guards/ksd-mathematics \\
    --suite gsm8k=hf:openai/gsm8k:main@test --shots gsm8k=hf:openai/gsm8k:main@train \\
    --suite mmlu=mmlu_test.jsonl --shots mmlu=mmlu_dev.jsonl --frame 'Q: {text}\\nA:' --output ./run --plots
The same command goes on with a run that was stopped. Without any model or server: the demo and its ten skills.
"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure what guards take away and what they leave",
        description="Asks benchmarks of a model with and without guards, and compares.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="run folder; an unfinished run in it is continued"
    )
    parser.add_argument("--plots", action="store_true", help="draw PNGs too (needs the extra: skillguard[plots])")

    add_arguments(parser, may_be_unguarded=False)
    parser.set_defaults(engine=Choice().engine)
    parser.add_argument(
        "--together",
        action="store_true",
        help="one row for all artifacts; otherwise one engine after another has one of them, and each loads the model",
    )

    there = parser.add_argument_group("against running servers")
    there.add_argument("--url", action="append", help="a guarded server; repeat it for more rows")
    there.add_argument("--baseline-url", help="the same model served --unguarded")
    add_key_file(there, "the key for all servers (an operator's shows scores, which AUROC needs)")

    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--suite", action="append", metavar="KIND[:LABEL]=SRC", help="a column; repeat it for more")
    asked.add_argument(
        "--shots",
        action="append",
        default=[],
        metavar="LABEL=SRC",
        help="solved examples for a suite, the first of SRC",
    )
    asked.add_argument(
        "--own",
        action="append",
        default=[],
        metavar="GUARD=LABEL,...",
        help="suites that a guard is to forget, where names do not tell; GUARD=none where none measures its skill",
    )
    add_fields(asked, EvaluationOptions, *EvaluationOptions.model_fields)
    scored = parser.add_argument_group("what scores the answers to suites of kind toxicity")
    add_fields(scored, ToxicityOptions, *ToxicityOptions.model_fields)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates, writes the run folder, prints the tables; returns the exit status. Raises SkillguardError."""
    if hasattr(args, "frame"):
        args.frame = read_frame(args.frame)
    options, scored = build_settings(EvaluationOptions, args), build_settings(ToxicityOptions, args)
    demo = not hasattr(args, "model") and not args.url
    suites = args.suite or (demo_suites() if demo else None)
    if suites is None:
        raise ConfigError("--suite: got none, wanted at least one KIND[:LABEL]=SRC; --help lists the kinds")
    remote = refuse_mixture(args)
    engine = None if remote else engine_options(args)

    from guards.model.frames import check_frame
    from server.evaluation.arms import engine_arms, remote_arms
    from server.evaluation.evaluate import Evaluation, evaluate
    from server.evaluation.scorers import open_scorer
    from server.evaluation.suites import read_suites
    from server.evaluation.summary import print_summary

    check_frame(options.frame)
    read = read_suites(suites, args.shots, options)
    scorer = open_scorer(scored, read)
    arms: list[Arm]
    if engine is None:
        arms = remote_arms(args.url, args.baseline_url, read_key(args.key_file))
    else:
        arms = engine_arms(engine, args.together)
    kept = None if engine is None else engine_settings(args.engine, engine)
    results = evaluate(Evaluation(arms, read, options, args.own, kept, scorer), args.output, plots=args.plots)
    print_summary(results, args.output)
    return 0


def demo_suites() -> list[str]:
    """The demo's ten skills."""
    return [f"prompts={path}" for path in sorted((DEMO / "data").glob("*.test.jsonl"))]


def engine_settings(name: str, options: EmbeddedOptions | VllmOptions) -> dict[str, Any]:
    """The engine's part of a run's settings."""
    return {"name": name, **options.model_dump(mode="json", include=DECIDING)}


def refuse_mixture(args: argparse.Namespace) -> bool:
    """Whether servers are asked. Raises ConfigError where it is not clear which of the two ways is meant."""
    known = (*EmbeddedOptions.model_fields, *VllmOptions.model_fields)
    given = [f"--{name.replace('_', '-')}" for name in known if hasattr(args, name)] + list(args.engine_flags)
    if args.together:
        given.append("--together")
    if not args.url:
        if args.baseline_url:
            raise ConfigError("--baseline-url: got no --url to compare it with; give the guarded server")
        return False
    if given:
        raise ConfigError(f"--url: got {given[0]} as well, which is for an engine in this process; give one of them")
    if not args.baseline_url:
        raise ConfigError("--baseline-url: got none, wanted the same model served --unguarded to compare with")
    return True
