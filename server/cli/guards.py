"""`skillguard guards`: how the guards of a running server judge, shown and changed, through its admin API."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from server.cli.client import add_key_file, read_key

URL_VARIABLE = "SKILLGUARD_URL"
_DEFAULT_URL = "http://127.0.0.1:8000"
_SECONDS = 30
_MODES = {
    "enable": ("enforce", "let a guard abstain", "Has a guard's hits withhold answers."),
    "shadow": ("shadow", "have a guard only watch", "Has a guard's hits counted and logged, and no more."),
    "disable": (
        "off",
        "have a guard's hits count for nothing",
        "Has a guard's hits count for nothing; an intervention does not act.",
    ),
}


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "guards",
        help="show and change the guards of a running server",
        description="Shows and changes how the guards of a running server judge. It needs a key of the role admin "
        "(`skillguard key add NAME --role admin`). A change holds from the next request on, until the server restarts.",
    )
    commands = parser.add_subparsers(dest="change", required=True, metavar="list|enable|disable|shadow|set-tau|reload")

    def command(name: str, help: str, description: str, run: Callable[[argparse.Namespace], int]) -> Any:
        added = commands.add_parser(name, help=help, description=description)
        if name != "list":
            added.add_argument("guard", help="the guard's name")
        added.add_argument(
            "--url",
            default=os.environ.get(URL_VARIABLE, _DEFAULT_URL),
            help=f"the server's address (default: ${URL_VARIABLE}, or {_DEFAULT_URL})",
        )
        add_key_file(added, "an admin's key")
        added.add_argument("--json", action="store_true", help="print the server's answer as JSON")
        added.set_defaults(run=run)
        return added

    command("list", "show every guard", "Shows every guard's mode, taus and artifact.", list_guards)
    for name, (_, help, description) in _MODES.items():
        command(name, help, description, set_mode)
    tau = command(
        "set-tau", "move a guard's taus", "Moves a guard's taus: above the artifact's it fires earlier.", set_tau
    )
    how = tau.add_mutually_exclusive_group(required=True)
    how.add_argument("--factor", type=float, help="times the artifact's own taus, 0.5 to 2")
    how.add_argument("--taus", type=float, nargs="+", metavar="TAU", help="one for each part, as list shows them")
    reload = command(
        "reload",
        "put another artifact in a guard's place",
        "Loads an artifact, waits until running requests have ended while new ones wait, and puts it in the guard's "
        "place if every guard's canaries then agree. Otherwise nothing is changed.",
        reload_guard,
    )
    reload.add_argument(
        "--path",
        metavar="FOLDER",
        help="on the server's machine (default: where the guard's own artifact was); where that is pinned, with "
        "@sha256:DIGEST behind it",
    )


def list_guards(args: argparse.Namespace) -> int:
    """Prints a line for each guard. Exit status 1 where one is not verified."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    report = _ask(args, "GET", "")
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        table = Table(box=box.SIMPLE, title=f"policy version {report['policy_version']}", title_justify="left")
        for column in ("guard", "mode", "taus", "factor", "changed by", "verified", "digest"):
            table.add_column(column, no_wrap=column not in ("taus", "changed by"))
        for guard in report["guards"]:
            taus = ", ".join(f"{tau:.4g}" for tau in guard["taus"])
            times = {f"{now / own:.3g}" for now, own in zip(guard["taus"], guard["artifact_taus"], strict=True) if own}
            moved = f"x {times.pop()}" if len(times) == 1 else "moved" if times else "-"
            changed_by = ", ".join(guard["changed_by"]) or "-"
            verified = "yes" if guard["verified"] else "NO"
            table.add_row(guard["name"], guard["mode"], taus, moved, changed_by, verified, guard["digest"][:12])
        Console().print(table)
    return 0 if all(guard["verified"] for guard in report["guards"]) else 1


def set_mode(args: argparse.Namespace) -> int:
    """Says what holds now."""
    mode, *_ = _MODES[args.change]
    return _say(args, _ask(args, "PATCH", f"/{args.guard}", {"mode": mode}))


def set_tau(args: argparse.Namespace) -> int:
    """Says what holds now."""
    change = {"taus": args.taus} if args.factor is None else {"tau_factor": args.factor}
    return _say(args, _ask(args, "PATCH", f"/{args.guard}", change))


def reload_guard(args: argparse.Namespace) -> int:
    """Says what holds now."""
    body = {} if args.path is None else {"path": args.path}
    return _say(args, _ask(args, "POST", f"/{args.guard}/reload", body))


def _say(args: argparse.Namespace, guard: Mapping[str, Any]) -> int:
    if args.json:
        print(json.dumps(guard, indent=1))
        return 0
    taus = ", ".join(f"{tau:.6g}" for tau in guard["taus"]) or "none"
    print(f"{guard['name']}: {guard['mode']}, taus {taus}, artifact {guard['digest'][:12]}")
    print(f"policy version {guard['policy_version']}. {guard['notice']}")
    return 0


def _ask(args: argparse.Namespace, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
    """The server's answer, for which a change waits as long as it takes: another may be under way.

    Raises ServerUnreachableError, ServerRefusalError or ConfigError.
    """
    from urllib.parse import quote

    import httpx

    from server.errors import ServerRefusalError, ServerUnreachableError

    url = args.url.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if (key := read_key(args.key_file)) else {}
    timeout = httpx.Timeout(_SECONDS, read=_SECONDS if method == "GET" else None)
    try:
        with httpx.Client(headers=headers, timeout=timeout) as client:
            response = client.request(method, f"{url}/admin/guards{quote(path)}", json=body)
        answer = response.json()
        if response.is_error:
            raise ServerRefusalError(f"{url}: got HTTP {response.status_code}: {answer['error']['message']}")
        return answer
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ServerUnreachableError.at(url, error) from error
