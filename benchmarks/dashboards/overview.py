"""What is looked at first: whether it answers, whether it is verified, and how much it withholds."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from benchmarks.dashboards.panels import JOB, count, dashboard, lines, rows, state

UID = "skillguard-overview"


def overview() -> Dashboard:
    """The first dashboard."""
    share = f"job_skill:skillguard_abstentions:share1h{{{JOB}}}"
    quantile = f"sum by (le) (rate(skillguard_time_to_first_token_seconds_bucket{{{JOB}}}[$__rate_interval]))"
    return (
        dashboard(UID, "skillguard: overview", "Is it up, is it verified, how much does it withhold.")
        .with_panel(
            state(
                "Ready",
                "Every guard's canaries agreed on the live engine, and the engine lives.",
                f"skillguard_ready{{{JOB}}}",
                "{{instance}}",
                words=("closed", "ready"),
            )
        )
        .with_panel(
            state(
                "Verified",
                "The canaries of each guard, wherever they agreed last.",
                f"min by (guard) (skillguard_guard_verified{{{JOB}}})",
                "{{guard}}",
                words=("no", "yes"),
                span=8,
            )
        )
        .with_panel(
            count(
                "Unverified answers",
                "Answers that lacked a reading of a guard; each was refused. Must stay at zero.",
                f"sum(increase(skillguard_unverified_requests_total{{{JOB}}}[$__range]))",
            )
        )
        .with_panel(
            state(
                "Audit log",
                "Whether what must be recorded can be.",
                f"1 - max(skillguard_audit_failing{{{JOB}}})",
                words=("failing", "written"),
                missing="none",
            )
        )
        .with_panel(
            state(
                "Keys file",
                "Whether the keys file can be used.",
                f"min(skillguard_keys_file_valid{{{JOB}}})",
                words=("broken", "valid"),
                missing="none",
            )
        )
        .with_panel(
            lines(
                "Abstention rate",
                "Share of an hour's answers that were withheld, of each skill, and the same hour a week ago.",
                (share, "{{skill}}"),
                (f"{share} offset 1w", "{{skill}} a week ago"),
                unit="percentunit",
            )
        )
        .with_panel(
            lines(
                "Answers",
                "Answers a second, by how they ended. Errors are answers that lacked a reading, or that failed.",
                (
                    f"sum by (outcome) (rate(skillguard_tenant_answers_total{{{JOB}}}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Time to first token",
                "From the request's arrival; queueing included.",
                (f"histogram_quantile(0.5, {quantile})", "median"),
                (f"histogram_quantile(0.95, {quantile})", "95 %"),
                unit="s",
                log=True,
            )
        )
        .with_panel(
            lines(
                "Load",
                "Requests in the batch, and in the queue.",
                (f"sum(skillguard_requests_running{{{JOB}}})", "running"),
                (f"sum(skillguard_requests_waiting{{{JOB}}})", "waiting"),
            )
        )
        .with_panel(
            rows(
                "Guards",
                "What is attached, in which mode, with which artifact.",
                f"skillguard_guard_info{{{JOB}}} * on (job, instance, guard) group_left (variant, sha256, quantiles) "
                f"skillguard_artifact_info{{{JOB}}}",
                ["instance", "guard", "skill", "method", "variant", "mode", "scope", "quantiles", "sha256"],
            )
        )
        .with_panel(
            rows(
                "Alerts",
                "What fires now; docs/operating.md says what to do.",
                'ALERTS{alertname=~"Skillguard.+",alertstate="firing",job=~"$job|"}',
                ["alertname", "severity", "instance", "guard", "skill"],
            )
        )
    )
