"""Metrics that are read off the server's state when Prometheus asks."""

import asyncio
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from guards.core.version import version
from server.audit.log import AuditLog
from server.audit.records import Kind
from server.edge.connections import Connections
from server.engines.base import Engine, TemplateState
from server.keyring import KeysFile
from server.readiness import Readiness


class StateCollector(Collector):
    """Queue, readiness, guards, versions, connections, and whether the audit log is written."""

    def __init__(
        self,
        engine: Engine,
        readiness: Readiness,
        keys: KeysFile | None,
        audit: AuditLog | None,
        connections: Connections,
    ) -> None:
        self._engine = engine
        self._readiness = readiness
        self._keys = keys
        self._audit = audit
        self._connections = connections

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: else the registry would call `collect` at registration, before the engine runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        readiness = self._readiness
        yield GaugeMetricFamily(
            "skillguard_ready", "1 while every guard is verified and the engine lives.", value=readiness.serving
        )
        yield InfoMetricFamily("skillguard_build", "This program.", value={"version": version()})
        yield GaugeMetricFamily(
            "skillguard_event_loop_tasks", "Tasks of the server's event loop.", value=len(asyncio.all_tasks())
        )
        yield GaugeMetricFamily("skillguard_connections", "Open connections.", value=len(self._connections))
        ended = CounterMetricFamily(
            "skillguard_connections_ended", "Connections that the server ended or refused.", labels=("why",)
        )
        for why, count in self._connections.ended.items():
            ended.add_metric((why.value,), count)
        yield ended
        if self._keys is not None:
            yield GaugeMetricFamily(
                "skillguard_keys_file_valid",
                "1 while the keys file can be used; else those of the last good one that it still holds go on.",
                value=self._keys.trouble is None,
            )
        if self._audit is not None:
            yield from _audit_metrics(self._audit)
        if readiness.running is None:
            return
        info, rules = readiness.running.info, readiness.running.policy.rules
        load = self._engine.load()
        yield GaugeMetricFamily("skillguard_requests_running", "Requests in the batch.", value=load.running)
        yield GaugeMetricFamily("skillguard_requests_waiting", "Requests in the queue.", value=load.waiting)
        yield InfoMetricFamily(
            "skillguard_engine",
            "What runs the model.",
            value={
                "engine": info.engine,
                "engine_version": info.engine_version,
                "model": info.model,
                "architecture": info.architecture,
                "device": info.device,
                "dtype": info.dtype,
            },
        )
        guards = GaugeMetricFamily(
            "skillguard_guard_info",
            "1 for each attached guard.",
            labels=("guard", "skill", "method", "kind", "mode", "scope"),
        )
        verified = GaugeMetricFamily("skillguard_guard_verified", "Canaries agreed.", labels=("guard",))
        accepted = GaugeMetricFamily(
            "skillguard_guard_template_accepted",
            "1 where the operator took another chat template or tokenizer than the calibrated one.",
            labels=("guard",),
        )
        artifacts = InfoMetricFamily(
            "skillguard_artifact",
            "The artifact of each guard. Without quantiles it is unknown how common a score is.",
            labels=("guard",),
        )
        for guard in info.guards:
            artifacts.add_metric(
                (guard.name,),
                {
                    "method": guard.method,
                    "variant": guard.variant or "",
                    "sha256": guard.digest,
                    "quantiles": "unknown" if guard.quantiles is None else "calibrated",
                },
            )
            rule = rules[guard.name]
            guards.add_metric((guard.name, guard.skill, guard.method, guard.kind, rule.mode, rule.scope), 1)
            verified.add_metric((guard.name,), readiness.is_verified(guard.name))
            accepted.add_metric((guard.name,), guard.template is TemplateState.ACCEPTED)
        yield artifacts
        yield InfoMetricFamily(
            "skillguard_policy", "How guards judge by default.", value={"version": readiness.running.policy.version}
        )
        yield GaugeMetricFamily(
            "skillguard_policy_version",
            "Changes of guards since the start, and 1.",
            value=readiness.running.policy_version,
        )
        yield guards
        yield verified
        yield accepted
        yield from self._engine.metrics()


def _audit_metrics(audit: AuditLog) -> Iterator[Metric]:
    written = CounterMetricFamily("skillguard_audit_records", "Records in the audit log.", labels=("kind",))
    for kind in Kind:
        written.add_metric((kind.value,), audit.written[kind.value])
    yield written
    yield CounterMetricFamily(
        "skillguard_audit_failures", "Records that were not written, or not in time.", value=audit.failures
    )
    yield GaugeMetricFamily(
        "skillguard_audit_failing", "1 while the audit log cannot be written.", value=audit.failing is not None
    )
    yield GaugeMetricFamily("skillguard_audit_waiting", "Answers whose records wait.", value=audit.waiting)
