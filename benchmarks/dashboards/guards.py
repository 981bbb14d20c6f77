"""What guards withhold and from whom, how their scores lie, and whether they are sound."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from benchmarks.dashboards.panels import JOB, LEVEL, dashboard, density, lines, threshold

UID = "skillguard-guards"
_SHARE = f"job_skill:skillguard_abstentions:share1h{{{JOB}}}"
_ANSWERS = f"job:skillguard_answers:increase1h{{{JOB}}}"


def guards() -> Dashboard:
    """The dashboard of whoever answers for the guards."""
    made = dashboard(UID, "skillguard: guards", "Abstentions, scores, drift, shadow, verification.")
    _abstentions(made.with_row(Row("Abstentions")))
    _scores(made.with_row(Row("Scores: is traffic what guards were calibrated on?")))
    _shadow(made.with_row(Row("Guards that only watch")))
    _sound(made.with_row(Row("Verification")))
    return made


def _abstentions(made: Dashboard) -> None:
    made.with_panel(
        lines(
            "Abstention rate by skill",
            "Share of an hour's answers, and the same hour a week ago.",
            (_SHARE, "{{skill}}"),
            (f"{_SHARE} offset 1w", "{{skill}} a week ago"),
            unit="percentunit",
        )
    )
    made.with_panel(
        lines(
            "Change against last week",
            "Difference of the two shares in standard errors. An alert also wants them to differ by a factor.",
            (f"job_skill:skillguard_abstentions:share_z1w{{{JOB}}}", "{{skill}}"),
            threshold("abstention_z"),
            threshold("abstention_z", negative=True),
        )
    )
    made.with_panel(
        lines(
            "Abstention rate by stage",
            "Share of an hour's answers. At the prompt nothing was sent yet; later some may have been.",
            (
                f"sum by (job, skill, stage) (increase(skillguard_abstentions_total{{{JOB}}}[1h])) "
                f"/ on (job) group_left () ({_ANSWERS} > 0)",
                "{{skill}}, {{stage}}",
            ),
            unit="percentunit",
        )
    )
    made.with_panel(
        lines(
            "Abstention rate by tenant",
            "Share of an hour's answers to each tenant, of all skills.",
            (
                f"sum by (tenant) (increase(skillguard_tenant_abstentions_total{{{JOB}}}[1h])) "
                f"/ (sum by (tenant) (increase(skillguard_tenant_answers_total{{{JOB}}}[1h])) > 0)",
                "{{tenant}}",
            ),
            unit="percentunit",
        )
    )
    made.with_panel(
        lines(
            "Where guards fire",
            "Tokens before the one at which a guard fired: the median of an hour.",
            (
                "histogram_quantile(0.5, sum by (guard, stage, le) "
                f"(increase(skillguard_hit_position_tokens_bucket{{{JOB}}}[1h])))",
                "{{guard}}, {{stage}}",
            ),
        )
    )
    made.with_panel(
        lines(
            "Sent before an abstention",
            "Tokens that a stream may have sent before a guard ended it: one in twenty of an hour's sent more.",
            (
                "histogram_quantile(0.95, sum by (guard, le) "
                f"(increase(skillguard_sent_before_abstention_tokens_bucket{{{JOB}}}[1h])))",
                "{{guard}}",
            ),
        )
    )


def _scores(made: Dashboard) -> None:
    made.with_panel(
        lines(
            "Quartiles of scores",
            "How common scores are among the texts of calibration, over six hours. Where traffic is like those, the "
            "quartiles are 0.25, 0.5 and 0.75. Low is near the skill.",
            (
                f"job_guard:skillguard_score_quantile:quantile6h{{{JOB}}}",
                "{{guard}}, {{level}}",
            ),
            *((f"vector({level})", f"{LEVEL} {level}") for level in (0.25, 0.5, 0.75)),
            top=1,
        )
    )
    made.with_panel(
        lines(
            "Drift",
            "The most that a quartile is off its place. An alert also wants enough prompts.",
            (f"job_guard:skillguard_score_quantile:drift6h{{{JOB}}}", "{{guard}}"),
            threshold("drift"),
        )
    )
    made.with_panel(
        density(
            "Score quantiles",
            "Prompts by the quantile of their score, of all guards: even while traffic is as at calibration.",
            f"sum by (le) (increase(skillguard_score_quantile_bucket{{{JOB}}}[$__rate_interval]))",
        )
    )
    made.with_panel(
        lines(
            "Score over tau",
            "Of guards whose artifact holds no quantiles: at or below 1 a guard fires. The lowest twentieth and the "
            "median of an hour's prompts.",
            *(
                (
                    f"histogram_quantile({level}, sum by (guard, le) "
                    f"(increase(skillguard_score_over_tau_bucket{{{JOB}}}[1h])))",
                    f"{{{{guard}}}}, {level}",
                )
                for level in (0.05, 0.5)
            ),
        )
    )


def _shadow(made: Dashboard) -> None:
    made.with_panel(
        lines(
            "False-abstention estimate",
            "Share of a day's prompts and answers that a watching guard would have refused, all taken for innocent, "
            "and the upper end of its 95 % interval. Requests for the skill among them make it too high.",
            (f"job_guard_stage:skillguard_shadow_hits:share1d{{{JOB}}}", "{{guard}}, {{stage}}"),
            (
                f"job_guard_stage:skillguard_shadow_hits:share1d_upper{{{JOB}}}",
                "{{guard}}, {{stage}}, at most",
            ),
            unit="percentunit",
        )
    )
    made.with_panel(
        lines(
            "Hits of watching guards",
            "A second.",
            (
                f"sum by (skill, stage) (rate(skillguard_shadow_hits_total{{{JOB}}}[$__rate_interval]))",
                "{{skill}}, {{stage}}",
            ),
            unit="reqps",
        )
    )


def _sound(made: Dashboard) -> None:
    made.with_panel(
        lines(
            "Canary margin",
            "Share of the allowed drift that canaries left in the last self-check: 1 as calibrated, 0 the edge. "
            "Beside an intervention, which moves scores, only its own.",
            (f"min by (guard) (skillguard_canary_margin_ratio{{{JOB}}})", "{{guard}}"),
            threshold("canary_margin"),
            top=1,
        )
    )
    made.with_panel(
        lines(
            "Guard errors",
            "Answers without a valid reading, by guard, in ten minutes. Each was refused. Must stay at zero.",
            (
                f"sum by (guard, kind) (increase(skillguard_guard_errors_total{{{JOB}}}[10m]))",
                "{{guard}}, {{kind}}",
            ),
            (f"sum(increase(skillguard_unverified_requests_total{{{JOB}}}[10m]))", "unverified answers"),
        )
    )
    made.with_panel(
        lines(
            "Verdicts",
            "What detectors made of prompts and answers, a second.",
            (
                f"sum by (guard, verdict) (rate(skillguard_verdicts_total{{{JOB}}}[$__rate_interval])) > 0",
                "{{guard}}, {{verdict}}",
            ),
            unit="reqps",
            stacked=True,
        )
    )
    made.with_panel(
        lines(
            "Interventions",
            "What Neuron Adjust and Selective Pruning did a second, in their own unit. Zero under load: nothing.",
            (
                f"sum by (guard, unit) (rate(skillguard_intervention_acted_total{{{JOB}}}[$__rate_interval]))",
                "{{guard}}, {{unit}}",
            ),
        )
    )
    made.with_panel(
        lines(
            "Other template accepted",
            "Guards served with another chat template or tokenizer than the calibrated one (--accept-template).",
            (f"max by (guard) (skillguard_guard_template_accepted{{{JOB}}})", "{{guard}}"),
            top=1,
        )
    )
    made.with_panel(
        lines(
            "Prompt log-probabilities withheld",
            "Prompts with hits inside, where log-probabilities were asked for, a second.",
            (
                f"sum by (skill, mode) (rate(skillguard_prompt_logprob_hits_total{{{JOB}}}[$__rate_interval]))",
                "{{skill}}, {{mode}}",
            ),
            unit="reqps",
        )
    )
