"""Steady load on a served demo, while its process is looked at: memory, descriptors, threads and asyncio's tasks.

    python -m benchmarks.soak --minutes N [--per-second 2] [--every 5]

Callers ask for the skill and for everything else, as whole answers, as streams, as texts that are only checked, and
as streams that they leave in the middle. Answers are recorded in an audit log, and canaries run each minute. A slope is
Theil and Sen's, over what was seen behind the first fifth of the time, with its interval of 95 %. The last line printed
is one JSON object, as in benchmarks/results/soak.json.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from scipy.stats import theilslopes

from benchmarks import report
from benchmarks.faults.served import Served, serve
from benchmarks.watched.load import others, prompts

NAME = "soak"
SKILL = "mathematics"
_WARM_UP = 0.2
"""The part of the time that slopes leave out."""
_LEFT_AFTER = 3
"""Pieces of a stream after which a caller goes."""
_MB = 1 << 20
_LEVEL = 0.95
_BODY = {"max_tokens": 24, "temperature": 0}


@dataclass(frozen=True)
class Sample:
    """A server's processes at one time."""

    hours: float
    rss_mb: float
    descriptors: int
    threads: int
    tasks: int


def sample(served: Served, client: httpx.Client, hours: float) -> Sample:
    """Of the server and its children together; tasks as its metrics tell them."""
    parent = psutil.Process(served.process.pid)
    family = [parent, *parent.children(recursive=True)]
    text = client.get("/metrics").raise_for_status().text
    tasks = next(line for line in text.splitlines() if line.startswith("skillguard_event_loop_tasks "))
    return Sample(
        hours=hours,
        rss_mb=sum(each.memory_info().rss for each in family) / _MB,
        descriptors=sum(each.num_fds() for each in family),
        threads=sum(each.num_threads() for each in family),
        tasks=int(float(tasks.split()[1])),
    )


def whole(client: httpx.Client, text: str) -> str:
    """Asks for an answer; returns its finish reason."""
    body = {**_BODY, "messages": [{"role": "user", "content": text}]}
    reply = client.post("/v1/chat/completions", json=body).raise_for_status()
    return str(reply.json()["choices"][0]["finish_reason"])


def streamed(client: httpx.Client, text: str) -> str:
    """The same as a stream, read to its end."""
    body = {**_BODY, "messages": [{"role": "user", "content": text}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        ended = "".join(reply.iter_text()).rstrip().endswith("[DONE]")
    return "streamed" if ended else "stream without its end"


def left(client: httpx.Client, text: str) -> str:
    """A stream that the caller leaves."""
    body = {**_BODY, "messages": [{"role": "user", "content": text}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        for _ in itertools.islice(reply.iter_lines(), _LEFT_AFTER):
            pass
    return "left"


def checked(client: httpx.Client, text: str) -> str:
    """A text that is only judged."""
    client.post("/v1/checks", json={"messages": [{"role": "user", "content": text}]}).raise_for_status()
    return "checked"


WAYS: tuple[Callable[[httpx.Client, str], str], ...] = (whole, streamed, left, checked)


def texts() -> Iterator[str]:
    """Prompts of the skill and of others in turn, for ever."""
    both = [text for pair in zip(prompts(SKILL), others(SKILL), strict=False) for text in pair]
    random.Random(0).shuffle(both)
    return itertools.cycle(both)


def slopes(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Each quantity's slope an hour with its interval, and its medians of the first and the last tenth.

    `samples`: those behind the warm-up, at least three.
    """
    hours = [each.hours for each in samples]
    tenth = max(1, len(samples) // 10)
    found: dict[str, dict[str, Any]] = {}
    for name in ("rss_mb", "descriptors", "threads", "tasks"):
        values = [getattr(each, name) for each in samples]
        slope, _, low, high = theilslopes(values, hours, _LEVEL)
        found[name] = {
            "first": round(median(values[:tenth]), 2),
            "last": round(median(values[-tenth:]), 2),
            "most": round(max(values), 2),
            "an_hour": round(float(slope), 3),
            "interval": [round(float(low), 3), round(float(high), 3)],
        }
    return found


def soak(served: Served, minutes: float, per_second: float, every: float) -> tuple[list[Sample], Counter[str]]:
    """Samples over the whole time, and how requests ended."""
    ended: Counter[str] = Counter()
    samples: list[Sample] = []
    asked = zip(itertools.cycle(WAYS), texts(), strict=False)
    began = time.monotonic()
    next_sample, last = began, began + minutes * 60
    with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def one(way: Callable[[httpx.Client, str], str], text: str) -> None:
            try:
                ended[way(client, text)] += 1
            except httpx.HTTPError as error:
                ended[f"{type(error).__name__}: {error}"[:80]] += 1

        for count in itertools.count():
            if (now := time.monotonic()) >= last:
                break
            if now >= next_sample:
                samples.append(sample(served, client, (now - began) / 3600))
                next_sample += every
            pool.submit(one, *next(asked))
            time.sleep(max(0.0, began + (count + 1) / per_second - time.monotonic()))
    return samples, ended


def main() -> None:
    """Runs and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--per-second", type=float, default=2.0, help="requests, whatever is answered")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between looks at the process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        audit = Path(folder)
        with serve("--audit-dir", str(audit), "--canary-interval-seconds", "60") as served:
            samples, ended = soak(served, args.minutes, args.per_second, args.every)
            status = served.stop()
        audit_mb = sum(path.stat().st_size for path in audit.rglob("*") if path.is_file()) / _MB
    behind = [each for each in samples if each.hours >= _WARM_UP * samples[-1].hours]
    if len(behind) < 3:
        print(f"soak: {len(samples)} looks are too few for a slope; give more --minutes", file=sys.stderr)
        sys.exit(1)
    more: dict[str, Any] = {
        "minutes": args.minutes,
        "per_second": args.per_second,
        "requests": dict(ended),
        "samples": len(behind),
        "exit_status": status,
        "audit_mb": round(audit_mb, 2),
    }
    report.publish(NAME, [{"quantity": name, **row} for name, row in slopes(behind).items()], **more)


if __name__ == "__main__":
    main()
