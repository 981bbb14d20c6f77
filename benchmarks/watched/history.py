"""Last week, which a fresh Prometheus has not seen: promtool writes counters of it, and evaluates our recording rules
over them."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.watched.components import JOB, RULES, program, prometheus

WEEK = 7 * 24 * 3600
INSTANCE = "last-week"
_ROOM = 2 * 3600
"""Before and after the same moment a week ago."""
_STEP = 15
ANSWERS_A_STEP = 2
"""480 an hour."""


def _counters(moment: float, skill: str, share: float) -> Iterator[str]:
    """OpenMetrics of a server a week ago, of whose answers a share abstained."""
    start = int(moment) - WEEK - _ROOM
    times = range(start, start + 2 * _ROOM, _STEP)
    answers = [ANSWERS_A_STEP * index for index in range(len(times))]
    of, by = f'job="{JOB}",instance="{INSTANCE}"', f'skill="{skill}",method="ksd"'
    series = (
        ("skillguard_verified_requests", of, answers),
        ("skillguard_unverified_requests", of, [0] * len(times)),
        ("skillguard_abstentions", f'{of},{by},stage="prompt"', [share * count for count in answers]),
    )
    for name, labels, values in series:
        yield f"# TYPE {name} counter\n"
        for at, value in zip(times, values, strict=True):
            yield f"{name}_total{{{labels}}} {value} {at}\n"
    yield "# EOF\n"


def seed(data: Path, scratch: Path, skill: str, share: float) -> None:
    """Writes blocks of last week into Prometheus' folder."""
    moment = time.time()
    (counters := scratch / "last-week.om").write_text("".join(_counters(moment, skill, share)), encoding="utf-8")
    promtool = program("promtool")
    _run(promtool, "tsdb", "create-blocks-from", "openmetrics", str(counters), str(data))
    (config := scratch / "idle.yml").write_text("scrape_configs: []\n", encoding="utf-8")
    start, end = (str(int(moment) - WEEK + shift) for shift in (3600 - _ROOM, _ROOM - 60))
    span = [f"--start={start}", f"--end={end}", f"--eval-interval={_STEP}s"]
    # A rule that reads another's series finds it in the next pass: shares of counts, then what follows of shares.
    for _ in range(2):
        with prometheus(config, data) as asked:
            command = [promtool, "tsdb", "create-blocks-from", "rules", *span, f"--url={asked.url}"]
            _run(*command, f"--output-dir={data}", str(RULES / "recording.yaml"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])}: {done.stderr.strip()[-500:]}")
