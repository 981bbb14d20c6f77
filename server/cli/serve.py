"""`skillguard serve`: the server, and the few lines that say what runs and where to send the first request."""

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from server.cli.engine import add_arguments, effective_settings
from server.cli.fields import add_fields
from server.config import AuditFailure, ServerConfig
from server.create import create_engine
from server.engines.options import EmbeddedOptions, VllmOptions
from server.heap import settle
from server.refused_names import CONFIG_VARIABLE
from server.settings import Effective, environment_name

if TYPE_CHECKING:
    from server.edge.serving import EdgeServer
    from server.readiness import Readiness

_SWITCH_SECONDS = 0.0005
"""How long a thread that encodes a prompt may have to wait for the event loop, or the loop for it. Python's own 5 ms
are longer than the work: many requests at once would wait for each other's.
"""
_LAST_SECONDS = 20.0
"""After running answers: for the engine, the audit log and traces."""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model with guards behind an OpenAI-compatible API",
        description="Serves a model with guards behind an OpenAI-compatible API. Without arguments: the demo model, "
        "unable to do mathematics, on 127.0.0.1:8000.",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the file, and a flag for every setting in it."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file of settings; ${CONFIG_VARIABLE} names one too. A variable such as "
        f"{environment_name(('server', 'port'))} wins over the file, and a flag over both",
    )
    add_arguments(parser)
    add_fields(parser.add_argument_group("server"), ServerConfig, *ServerConfig.model_fields)


def run(args: argparse.Namespace) -> int:
    """Serves until interrupted. Exit status 1 when the engine could not start."""
    settings = effective_settings(args)
    config, options = settings.server, settings.options

    import logging

    import uvloop
    from transformers.utils.logging import disable_progress_bar

    from server.app import create_app
    from server.edge.serving import fit_descriptors, make_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    disable_progress_bar()
    sys.setswitchinterval(_SWITCH_SECONDS)
    app = create_app(create_engine(options), config)
    fit_descriptors(app.state.services.connections)
    server = make_server(app, config, stopping=lambda: _end_within(config.stop_timeout_seconds + _LAST_SECONDS))
    # uvicorn raises the signal again once it has stopped, which would make a stop as asked look like a failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    return uvloop.run(_serve(server, app.state.services.readiness, settings))


def _end_within(seconds: float) -> None:
    """Ends the process hard where it has not ended by then: a thread of the engine's may hang."""

    def end() -> None:
        print(f"skillguard serve: error: did not stop within {seconds:g} seconds; ended as it is", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def _serve(server: "EdgeServer", readiness: "Readiness", settings: Effective) -> int:
    announced = asyncio.create_task(_announce(server, readiness, settings))
    try:
        await server.serve()
    finally:
        announced.cancel()
    return 1 if readiness.failure is not None else 0


async def _announce(server: "EdgeServer", readiness: "Readiness", settings: Effective) -> None:
    """Prints the banner once the guards are verified; ends the process when the engine could not start at all.

    A guard that fails its canaries keeps the process up and not ready, so that /ready can say which it is.
    """
    await readiness.settled.wait()
    if readiness.failure is not None and not readiness.reasons:
        print(f"skillguard serve: error: {readiness.failure}", file=sys.stderr)
        server.should_exit = True
        return
    settle()
    await server.listening.wait()  # an engine may be ready before the socket is
    port = server.servers[0].sockets[0].getsockname()[1]
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    print(banner(readiness, f"http://{host}:{port}", settings.server, settings.options), flush=True)


def _opened(config: ServerConfig, options: EmbeddedOptions | VllmOptions) -> Iterator[str]:
    """One sentence for each of the operator's choices that opens something, and is of no guard."""
    if isinstance(options, VllmOptions) and options.allow_untested_runner:
        yield (
            "a model runner that guards were not tested with is taken (--allow-untested-runner): canaries alone stand "
            "for them"
        )
    if config.audit_failure is AuditFailure.ANSWER:
        yield "what cannot be recorded is answered all the same (--audit-failure answer)"
    if config.api_keys_file is None and (config.anonymous_role == "operator" or not config.listens_on_loopback):
        yield f"no keys: whoever can connect to {config.host} is a {config.anonymous_role}"


def banner(readiness: "Readiness", url: str, config: ServerConfig, options: EmbeddedOptions | VllmOptions) -> str:
    """What runs, what is not covered, what was opened by choice, and a line to paste."""
    from guards.artifact.pins import vouched
    from guards.core.version import tool_name
    from server.combinations import combined
    from server.coverage import accepted, uncovered
    from server.engines.defaults import shown

    running = readiness.require_running()
    info, rules = running.info, running.policy.rules
    lines = [
        f"{tool_name()}, engine {info.engine} {info.engine_version} on {info.device} in {info.dtype}",
        f"  model  {info.model} ({info.architecture}, up to {info.max_model_tokens} tokens)",
    ]
    for guard in info.guards:
        state = "verified" if readiness.is_verified(guard.name) else f"FAILED: {readiness.reasons[guard.name]}"
        state += vouched(guard.pinned, guard.signed_by)
        lines.append(f"  guard  {guard.name}: {guard.method}, skill {guard.skill}, {rules[guard.name].mode}, {state}")
    if not info.guards:
        lines.append("  guard  NONE: every skill is served (--unguarded)")
    if defaults := shown(info.defaults):
        lines.append(f"  draws  {defaults}, where a request does not say (--generation-config vllm leaves this out)")
    notes = [*accepted(info), *uncovered(info), *combined(info.beside), *_opened(config, options)]
    lines += [f"  note   {sentence}" for sentence in notes]
    if not readiness.ready:
        return "\n".join([*lines, f"  NOT READY: nothing is generated. {url}/ready says why."])
    body = json.dumps({"model": info.model, "messages": [{"role": "user", "content": "What is 23 plus 58?"}]})
    key = ' -H "Authorization: Bearer $SKILLGUARD_KEY"' if config.api_keys_file else ""
    return "\n".join(
        [
            *lines,
            f"  ready  {url}/v1  (metrics at {url}/metrics)",
            "",
            f"  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}",
            "",
        ]
    )
