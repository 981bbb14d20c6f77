"""Load on an OpenAI server, and how servers do under the same load.

    python -m benchmarks.load --url http://127.0.0.1:8000/v1 --served-name NAME [--clients 1 16 64] [--rate 8 ...]
        [--requests N] [--max-tokens N] [--whole] [--prompts demo|written] [--key KEY]
    python -m benchmarks.load --compare NAME [--model DIR] [--artifacts FOLDER ...] [--clients 1 16 64] [--rounds N]
        [--requests N] [--prompts demo|written]

With `--url` the server that runs there is asked: in a closed loop by so many clients at a time, and with `--rate` in an
open loop, by a Poisson process of so many requests a second. A fifth of the prompts ask for mathematics and a fifth are
long. The time to the first token and the time of an abstention count from when a request was due.

With `--compare` servers are started and asked in turns, ABBA, in one run, each round with the same prompts:

* guards: `skillguard serve --engine vllm` with guards, over itself without.
* http: the same without guards, over vLLM's own server.
* transformers: `skillguard serve --unguarded`, over `transformers serve --continuous-batching`.
* router: four replicas of `skillguard serve` behind nginx, over one of them asked directly.
* levels: both engines with guards and mixed prompts, vLLM over the embedded engine, at 1 to 256 clients.
* ceiling: the client alone, on a server that only sends.

`ratio` is the median over pairs of rounds of a side's tokens a second over the first's, with its bootstrap interval of
95 %. The last line printed is one JSON object; a comparison's is kept as `results/load.<NAME>.json`, or
`load.<NAME>-<MODEL>.json` of another model than the demo. A run that was stopped goes on with the same command.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.load.client import Answer, Client, body_of
from benchmarks.load.compare import alternate, compared
from benchmarks.load.comparisons import COMPARISONS
from benchmarks.load.figures import figures
from benchmarks.load.loops import Job, closed, opened
from benchmarks.load.prompts import SHARES, SOURCES, mixed
from benchmarks.load.servers import DEMO, Server, Setup
from benchmarks.report import keep, kept, publish
from benchmarks.serving import ROOT

_DEMO_GUARD = ROOT / "artifacts" / "demo" / "guards" / "ksd-mathematics"


async def load(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of clients and each rate, on a server that runs."""
    rows: list[dict[str, Any]] = []

    def jobs(requests: int) -> list[Job]:
        prompts = islice(mixed(args.prompts, SHARES, args.max_tokens), args.requests or requests)
        return [(each.kind, body_of(each, args.served_name, stream=not args.whole, more={})) for each in prompts]

    def take(answers: Sequence[Answer], **of: float) -> None:
        rows.append({**of, **figures(answers, streamed=not args.whole)})
        print(rows[-1], flush=True)

    async with Client(args.url, args.key) as client:
        for clients in args.clients:
            take(await closed(client, jobs(max(32, 4 * clients)), clients), clients=clients)
        for rate in args.rate:
            take(await opened(client, jobs(64), rate), rate=rate)
    return rows


async def compare(args: argparse.Namespace) -> None:
    """One row for each number of clients: the figures of each side, and their ratios."""
    setup = Setup(args.model.resolve(), tuple(each.resolve() for each in args.artifacts))
    name = f"load.{args.compare}" if setup.model == DEMO else f"load.{args.compare}-{setup.model.name}"
    of = {"model": setup.name, "guards": [each.name for each in setup.artifacts]}
    comparison, rows = COMPARISONS[args.compare], kept(name)
    done = {row["clients"] for row in rows}
    left = [each for each in args.clients or comparison.clients if each not in done]
    starting: AbstractContextManager[Mapping[str, Server]] = comparison.sides(setup) if left else nullcontext({})
    with starting as sides:
        for clients in left:
            asked = comparison.load(args.prompts, clients, args.requests)
            found = await alternate({name: asked.ask(side, clients) for name, side in sides.items()}, args.rounds)
            rows.append({"clients": clients, "requests": asked.requests, **compared(found)})
            print(rows[-1], flush=True)
            keep(name, rows, **of)
    publish(name, sorted(rows, key=lambda row: int(row["clients"])), **of)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="a server that runs, with /v1")
    what.add_argument("--compare", choices=COMPARISONS)
    parser.add_argument("--served-name", default="skillguard-demo", help="what the server calls its model")
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--clients", type=int, nargs="+", default=[], help="clients at a time, in a closed loop")
    parser.add_argument("--rate", type=float, nargs="+", default=[], help="requests a second, in an open loop")
    parser.add_argument("--requests", type=int, help="requests in a round (default: some for each client)")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of rounds")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--whole", action="store_true", help="ask for answers that are not streamed")
    parser.add_argument("--prompts", choices=SOURCES, default="demo", help="of the demo's skills, or of the world")
    parser.add_argument("--model", type=Path, default=DEMO, help="the folder that a comparison serves")
    parser.add_argument("--artifacts", type=Path, nargs="+", default=[_DEMO_GUARD], metavar="FOLDER")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or servers that were started would stay
    if args.url is not None:
        args.clients = args.clients or ([] if args.rate else [1, 16, 64])
        print(json.dumps({"rows": asyncio.run(load(args))}))
        return
    asyncio.run(compare(args))


if __name__ == "__main__":
    main()
