"""Attacks a served demo in every way of registry.py, while somebody who behaves goes on asking.

    python -m benchmarks.attacks [NAME ...] [--seconds 20]

Each attack has a server of its own. A request of the bystander's is disturbed if it gets no or another answer, or takes
more than ten times the median before the attack, and at least a second. The time until normal is that from the attack's
end to the first of five undisturbed requests in a row. The last line printed is one JSON object, as in
benchmarks/results/attacks.json; nothing is written where only some attacks are named.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import report
from benchmarks.attacks.attack import Attack
from benchmarks.attacks.bystander import Asked, Bystander, disturbed, slow_from
from benchmarks.attacks.registry import ATTACKS
from benchmarks.serving import ROOT, await_address, in_banner

NAME = "attacks"
_BEFORE, _IN_A_ROW, _GIVE_UP_SECONDS = 20, 5, 120.0
_MB = 1 << 20


@contextmanager
def served(attack: Attack, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A demo's server under the attack's limits: its address and its process. What it prints goes to the log."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", *attack.flags]

    def limited() -> None:
        if attack.descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (attack.descriptors, attack.descriptors))

    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=limited
        )
        try:
            yield await_address(process, in_banner), psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Watch:
    """A server's memory, looked at five times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.before = self.peak = process.memory_info().rss

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            await asyncio.sleep(0.2)


async def attacked(attack: Attack, url: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """What one attack did to the bystander and to the server."""
    bystander = Bystander(url)
    before = [await bystander.ask() for _ in range(_BEFORE)]
    if wrong := [asked.wrong for asked in before if asked.wrong is not None]:
        raise RuntimeError(f"the server does not answer before the attack: {wrong[0]}")
    slow, watch = slow_from(before), Watch(process)
    watching = asyncio.create_task(watch.run())
    host, _, port = url.removeprefix("http://").partition(":")
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.attacks.attacker", attack.name, host, port, str(seconds)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    met = asyncio.create_task(attacker.communicate())
    asked: list[Asked] = []
    while not met.done():
        asked.append(await bystander.ask())
    during = len(asked)
    normal = await _normal_after(bystander, asked, slow)
    watching.cancel()
    await bystander.close()
    disturbances = [each for each in asked if disturbed(each, slow)]
    return {
        "attack": attack.name,
        "what": attack.what,
        "met": (await met)[0].decode().strip(),
        "asked": len(asked),
        "asked_during": during,
        "disturbed": len(disturbances),
        "disturbed_share": round(len(disturbances) / len(asked), 4),
        "wrong": dict(Counter(each.wrong or "slow" for each in disturbances)),
        "median_seconds_before": round(median(each.seconds for each in before), 4),
        "median_seconds_during": round(median(each.seconds for each in asked[:during]), 4),
        "slowest_seconds": round(max(each.seconds for each in asked), 3),
        "memory_before_mb": watch.before // _MB,
        "memory_peak_mb": watch.peak // _MB,
        "seconds_until_normal": normal,
    }


async def _normal_after(bystander: Bystander, asked: list[Asked], slow: float) -> float | None:
    """Seconds until the server is as before; None where it is not within the patience."""
    ended = time.perf_counter()
    row = 0
    while time.perf_counter() < ended + _GIVE_UP_SECONDS:
        began = time.perf_counter()
        asked.append(await bystander.ask())
        if disturbed(asked[-1], slow):
            row = 0
            continue
        if row == 0:
            since = began - ended
        row += 1
        if row == _IN_A_ROW:
            return round(since, 2)
    return None


def main() -> None:
    """Runs the attacks and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; all by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each attack goes on")
    args = parser.parse_args()
    if unknown := set(args.names) - ATTACKS.keys():
        parser.error(f"no attack {sorted(unknown)}; there are {', '.join(ATTACKS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for attack in [ATTACKS[name] for name in args.names or ATTACKS]:
            log = Path(folder) / "log"
            with served(attack, log) as (url, process):
                row = asyncio.run(attacked(attack, url, process, args.seconds))
            row["log_bytes"] = log.stat().st_size
            print(json.dumps(row, ensure_ascii=False), file=sys.stderr)
            rows.append(row)
    if args.names:
        print(json.dumps({"rows": rows}, ensure_ascii=False))
    else:
        report.publish(NAME, rows, seconds=args.seconds)


if __name__ == "__main__":
    main()
