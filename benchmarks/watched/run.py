"""What a watched server goes through: the usual, a spike, every query of the dashboards, and its end."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.watched.components import (
    INTERVAL_SECONDS,
    JOB,
    Prometheus,
    Receiver,
    alertmanager,
    hurried_rules,
    program,
    prometheus,
    prometheus_config,
    receiver,
)
from benchmarks.watched.history import INSTANCE, seed
from benchmarks.watched.queries import Asked

SPIKE, GONE = "SkillguardAbstentionSpike", "SkillguardNotScraped"
_ANSWERS = f'sum(skillguard_verified_requests_total{{job="{JOB}",instance!="{INSTANCE}"}})'
Series = list[dict[str, Any]]


@dataclass(frozen=True)
class Watched:
    """A server's Prometheus, and what Alertmanager told of it. `skill`: whose abstentions are looked at."""

    prometheus: Prometheus
    told: Receiver
    skill: str

    def settle(self, answers: int) -> None:
        """Returns once Prometheus saw all answers, and then evaluated rules for longer than an alert waits.

        Raises NotInTimeError.
        """
        self.prometheus.wait_for(_ANSWERS, answers)
        now = self.prometheus.instant("vector(time())")[0]["value"][1]
        evaluated = 'timestamp(skillguard:threshold{name="drift"})'
        self.prometheus.wait_for(f"{evaluated} - {now}", 5 * INTERVAL_SECONDS)

    def state(self) -> dict[str, Any]:
        """The recorded share of abstentions, the alerts that fire, and those that Alertmanager told of so far."""
        share = f'job_skill:skillguard_abstentions:share1h{{job="{JOB}",skill="{self.skill}"}}'
        (found,) = self.prometheus.instant(share)
        firing = {each["metric"]["alertname"] for each in self.prometheus.instant('ALERTS{alertstate="firing"}')}
        return {
            "share": round(float(found["value"][1]), 3),
            "firing": sorted(firing),
            "told": sorted(self.told.names()),
        }

    def await_alert(self, name: str, since: float) -> dict[str, Any]:
        """An alert as Alertmanager told of it, and after how many seconds.

        Raises NotInTimeError.
        """
        at, alert = self.told.wait_for(name)
        return {"seconds": round(at - since, 1), "labels": alert["labels"], "annotations": alert["annotations"]}

    def shown(self, asked: Asked, began: float) -> Series:
        """What a query's panel shows: what there is now, or what there was since."""
        if asked.is_instant:
            return self.prometheus.instant(asked.expr)
        return self.prometheus.over(asked.expr, began, time.time(), INTERVAL_SECONDS)


@contextmanager
def watching(folder: Path, server: str, key: Path, skill: str, share: float) -> Iterator[Watched]:
    """Prometheus and Alertmanager beside a server, of which a share abstained last week. `key`: a file, of /metrics."""
    seed(folder / "data", folder, skill, share)
    with receiver() as (webhook, told), alertmanager(folder, webhook) as alerts:
        config = prometheus_config(folder, hurried_rules(folder / "rules"), server=server, key=key, alertmanager=alerts)
        with prometheus(config, folder / "data") as running:
            running.wait_for(f'count(skillguard_ready{{job="{JOB}"}})', 1)
            yield Watched(running, told, skill)


def usual_then_spike(
    watched: Watched, ask: Callable[[Sequence[str]], int], usual: Sequence[str], spike: Sequence[str]
) -> dict[str, Any]:
    """What alerts did under a load as last week's, and then under one that asks for the skill only.

    `ask` gives how many of these prompts were withheld. Raises NotInTimeError where the alert does not come.
    """
    withheld = ask(usual)
    watched.settle(len(usual))
    before = {"requests": len(usual), "withheld": withheld, **watched.state()}
    withheld = ask(spike)
    alert = watched.await_alert(SPIKE, time.monotonic())
    watched.settle(len(usual) + len(spike))
    after = {"requests": len(spike), "withheld": withheld, **watched.state(), "alert": alert}
    return {"usual": before, "spike": after}


def lint(url: str, key: str) -> str:
    """What `promtool check metrics` has to say of a server's metrics: nothing."""
    response = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=response.raise_for_status().text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr
