"""Drives people's clients against a running server, as their documentation says to use them.

    python -m benchmarks.clients [--only NAME ...] [--styles STYLE ...] [--base-url URL] [--work DIR] [FLAGS OF serve]

Each client asks for an answer, for the same as a stream, for structured output where it has that, for what a guard
withholds, which it must show once, and then for a further turn with nothing but its own history appended. Every style
of abstention is served in turn, by `skillguard serve` with the demo or with the flags that are not listed here; or
`--base-url` names a server that runs already, and `--styles` the one style that it has.

A client whose packages are installed here and fit together runs here; any other in an environment of its own, which pip
fills from the package index and the work folder keeps. With `--only`, rows of other clients stay as they were.
A client that fails is a row like any other. The last line printed is one JSON object, as in
benchmarks/results/clients.json.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import report
from benchmarks.clients.drivers.steps import REFUSED, Served
from benchmarks.clients.registry import CLIENTS, STYLES, Client, chosen
from benchmarks.clients.run import Row, drive
from benchmarks.serving import ROOT, running_server

NAME = "clients"
WORK = report.UNFINISHED / NAME
DEMO = ROOT / "artifacts" / "demo" / "model"


@contextmanager
def server(args: argparse.Namespace, style: str, flags: Sequence[str]) -> Iterator[Served]:
    """A server of this style, or the one that runs already."""
    if args.base_url:
        yield asked(args.base_url.removesuffix("/").removesuffix("/v1"), style, args.tokenizer)
        return
    with running_server("--abstain-style", style, *flags) as url:
        yield asked(url, style, args.tokenizer)


def asked(url: str, style: str, tokenizer: Path) -> Served:
    """What clients have to know of a server. Raises SystemExit where it does not abstain in this style."""
    with httpx.Client(base_url=url, timeout=120) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": REFUSED}], "temperature": 0}
        choice = client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    field = "refusal" if style == "refusal" else "content"
    text = choice["message"][field]
    if not choice.get("guard") or not text:
        raise SystemExit(f"{url} answered {choice['message']!r} to {REFUSED!r}; wanted an abstention of style {style}")
    return Served(f"{url}/v1", model, style, text, str(tokenizer))


def merged(new: Sequence[Row], old: Sequence[Row]) -> list[Row]:
    """Rows in the clients' order; those of an earlier run stay where this one has none."""
    done = {(row["client"], row["style"]) for row in new}
    rows = [*new, *(row for row in old if (row["client"], row["style"]) not in done)]
    order = {client.name: index for index, client in enumerate(CLIENTS)}
    known = [row for row in rows if row["client"] in order]
    return sorted(known, key=lambda row: (order[row["client"]], STYLES.index(row["style"])))


def run(clients: Sequence[Client], args: argparse.Namespace, flags: Sequence[str]) -> list[Row]:
    """Every client under every style."""
    rows: list[Row] = []
    for style in args.styles:
        wanted = [client for client in clients if style in client.styles]
        if not wanted:
            continue
        with server(args, style, flags) as served:
            for client in wanted:
                found = drive(client, served, args.work)
                for row in found:
                    print(f"{row['client']:20} {style:15} {row['step']:16} {row['outcome']:7} {row['said'][:90]}")
                rows += found
                report.keep(NAME, rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(client.name for client in CLIENTS))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--base-url", help="a server that runs already, of the one style that --styles names")
    parser.add_argument("--tokenizer", type=Path, default=DEMO, help="the model's folder (default: the demo's)")
    parser.add_argument("--work", type=Path, default=WORK, help="keeps environments (default: %(default)s)")
    args, flags = parser.parse_known_args(arguments)
    if args.base_url and len(args.styles) != 1:
        parser.error("got --base-url, wanted its one style as --styles too")
    try:
        clients = chosen(args.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = run(clients, args, flags)
    kept = report.RESULTS / f"{NAME}.json"
    old = json.loads(kept.read_text(encoding="utf-8"))["rows"] if args.only and kept.exists() else []
    failed = sum(row["outcome"] == "failed" for row in rows)
    report.publish(NAME, merged(rows, old), failed=failed, serve=list(flags))


if __name__ == "__main__":
    main()
