"""`skillguard doctor`: proves or refutes on this machine what the tests prove on CPUs."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from server.cli.engine import add_arguments, engine_options
from server.demo import DEMO
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError

REPORT = Path("skillguard-doctor.json")


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="prove or refute on this machine what the tests prove",
        description="Runs guards on this machine's engine and device: versions, canaries, verdicts alone, batched, "
        "chunked and against a plain pass, refusals under every option, and the speed. By default with the demo's "
        "guards, which takes about a minute; give --model and --artifacts for your own. Prints a line for each "
        "property and writes a report to send us, without prompts. Exit status 1 where a property is refuted.",
    )
    add_arguments(parser, may_be_unguarded=False)
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help=f"by default {REPORT}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examines, prints and writes. Raises what reading artifacts and flags raises; ConfigError for a bad --report."""
    if not args.report.parent.is_dir():  # before a minute's work
        raise ConfigError(f"--report {args.report}: got no such folder; make it, or name another file")
    import uvloop
    from transformers.utils.logging import disable_progress_bar

    from server.create import create_engine
    from server.doctor.examination import examine

    disable_progress_bar()

    async def examined() -> int:
        """Tells before the event loop ends, which waits for an engine that hangs."""
        report = await examine(_options(args), create_engine)
        print(report.text())
        args.report.write_text(json.dumps(report.told(), indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.report}", flush=True)
        if report.hangs:
            os._exit(1)
        return 0 if report.sound else 1

    return uvloop.run(examined())


def _options(args: argparse.Namespace) -> EmbeddedOptions | VllmOptions:
    """Of the demo every detector, where no model was named. On vLLM with whatever runner: that is the question."""
    if not hasattr(args, "model") and not hasattr(args, "artifacts"):
        args.artifacts = tuple(sorted((DEMO / "guards").glob("ksd-*")))
    options = engine_options(args)
    if isinstance(options, EmbeddedOptions):
        return options
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the other one is refused in any case
    return options.model_copy(update={"allow_untested_runner": True})
