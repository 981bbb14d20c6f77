"""Latency, throughput, and the audit log."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from benchmarks.dashboards.panels import JOB, Query, dashboard, lines, threshold

UID = "skillguard-serving"


def _quantiles(metric: str, *levels: float) -> list[Query]:
    buckets = f"sum by (le) (rate({metric}_bucket{{{JOB}}}[$__rate_interval]))"
    return [(f"histogram_quantile({level}, {buckets})", f"{level:.0%}") for level in levels]


def serving() -> Dashboard:
    """The dashboard of whoever keeps it running."""
    made = dashboard(UID, "skillguard: serving", "Latency, throughput, queue, audit log.")
    made.with_row(Row("Latency"))
    made.with_panel(
        lines(
            "Time to first token",
            "From the request's arrival; queueing included. The alert looks at 95 % over ten minutes.",
            *_quantiles("skillguard_time_to_first_token_seconds", 0.5, 0.95, 0.99),
            threshold("first_token_seconds"),
            unit="s",
            log=True,
        )
    )
    made.with_panel(
        lines(
            "Time per output token",
            "The mean of each answer.",
            *_quantiles("skillguard_time_per_output_token_seconds", 0.5, 0.95, 0.99),
            unit="s",
            log=True,
        )
    )
    made.with_panel(
        lines(
            "Request duration",
            "From the first byte in to the last byte out, 95 % of each route.",
            (
                "histogram_quantile(0.95, sum by (route, le) "
                f"(rate(skillguard_request_duration_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                "{{route}}",
            ),
            unit="s",
            log=True,
        )
    )
    made.with_panel(
        lines(
            "Load",
            "Requests in the batch and in the queue of each server.",
            (f"skillguard_requests_running{{{JOB}}}", "{{instance}} running"),
            (f"skillguard_requests_waiting{{{JOB}}}", "{{instance}} waiting"),
        )
    )
    made.with_row(Row("Throughput"))
    made.with_panel(
        lines(
            "Requests",
            "A second, by route and status.",
            (
                f"sum by (route, status) (rate(skillguard_requests_total{{{JOB}}}[$__rate_interval]))",
                "{{route}} {{status}}",
            ),
            unit="reqps",
            stacked=True,
        )
    )
    made.with_panel(
        lines(
            "Tokens",
            "A second. Those of withheld answers are counted too.",
            (f"sum(rate(skillguard_prompt_tokens_total{{{JOB}}}[$__rate_interval]))", "in"),
            (f"sum(rate(skillguard_completion_tokens_total{{{JOB}}}[$__rate_interval]))", "out"),
        )
    )
    made.with_panel(
        lines(
            "Answers by tenant",
            "A second. Tenants beyond the first 200 are one, other.",
            (f"sum by (tenant) (rate(skillguard_tenant_answers_total{{{JOB}}}[$__rate_interval])) > 0", "{{tenant}}"),
            unit="reqps",
            stacked=True,
        )
    )
    made.with_panel(
        lines(
            "Refused and failed requests",
            "A second. 401, 403: wrong keys; 429: a tenant's limits; 503: a closed server, or a failing audit log.",
            (
                f'sum by (route, status) (rate(skillguard_requests_total{{{JOB},status!~"2.."}}[$__rate_interval]))',
                "{{route}} {{status}}",
            ),
            unit="reqps",
        )
    )
    made.with_row(Row("Audit"))
    made.with_panel(
        lines(
            "Audit log",
            "1 while it cannot be written, what was not in ten minutes, and answers that wait for their records.",
            (f"skillguard_audit_failing{{{JOB}}}", "{{instance}} failing"),
            (f"increase(skillguard_audit_failures_total{{{JOB}}}[10m])", "{{instance}} not written"),
            (f"skillguard_audit_waiting{{{JOB}}}", "{{instance}} waiting"),
        )
    )
    made.with_panel(
        lines(
            "Audit records",
            "Written a second, by kind.",
            (f"sum by (kind) (rate(skillguard_audit_records_total{{{JOB}}}[$__rate_interval])) > 0", "{{kind}}"),
            stacked=True,
        )
    )
    return made
