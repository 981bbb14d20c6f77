"""Panels as all dashboards have them: lines, figures, tables and heatmaps of PromQL."""

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "skillguard"
JOB = 'job="$job"'
"""In every query: one deployment at a time."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
THRESHOLD = "threshold"
"""The legend of lines at which an alert fires; also the end of it, where there are several."""
LEVEL = "level"
"""The legend of lines that show where others should be begins so."""
GOOD, BAD, QUIET = "green", "red", "gray"
Query = tuple[str, str]
"""PromQL, and the legend of its series."""


def dashboard(uid: str, title: str, description: str) -> Dashboard:
    """An empty dashboard with the variables and the links that all have."""
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("skillguard")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            builders.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(VariableOption(text="Prometheus", value="prometheus"))
        )
        .with_variable(
            builders.QueryVariable("job")
            .label("Deployment")
            .datasource(SOURCE)
            .query("label_values(skillguard_ready, job)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )


def threshold(name: str, *, negative: bool = False) -> Query:
    """The line at which an alert fires."""
    expr = f'skillguard:threshold{{name="{name}"}}'
    return (f"-{expr}", f"negative {THRESHOLD}") if negative else (expr, THRESHOLD)


def _query(expr: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    stacked: bool = False,
    top: float | None = None,
    log: bool = False,
) -> timeseries.Panel:
    """Series over time, from 0 on unless `log`; thresholds and last week are dashed. `top`: the least that is shown."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .line_width(2)
        .fill_opacity(25 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .override_by_regexp(f"(.* )?{THRESHOLD}", _dashed(BAD))
        .override_by_regexp(".*a week ago", _dashed(None))
        .override_by_regexp(f"{LEVEL} .*", _dashed(QUIET))
        .span(12)
        .height(8)
    )
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    else:
        panel.axis_soft_min(0)
    if top is not None:
        panel.axis_soft_max(top)
    for expr, legend in queries:
        panel.with_target(_query(expr, legend))
    return panel


def _dashed(color: str | None) -> list[DynamicConfigValue]:
    found = [
        DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
        DynamicConfigValue("custom.lineWidth", 1),
        DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
        DynamicConfigValue("custom.fillOpacity", 0),
    ]
    if color is not None:
        found.append(DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color}))
    return found


def state(
    title: str,
    description: str,
    expr: str,
    legend: str = "",
    *,
    words: tuple[str, str],
    missing: str = "not scraped",
    span: int = 4,
) -> stat.Panel:
    """What is 0 or 1 now, in words: the bad one of 0, and the good one of 1; `missing` where it is neither."""
    bad, good = words
    mapping = ValueMap({"0": ValueMappingResult(text=bad, color=BAD), "1": ValueMappingResult(text=good, color=GOOD)})
    return _figure(title, description, expr, legend, span).mappings([mapping]).no_value(missing)


def count(title: str, description: str, expr: str, *, span: int = 4) -> stat.Panel:
    """A number that must stay at zero."""
    steps = [Threshold(value=None, color=GOOD), Threshold(value=1e-9, color=BAD)]
    figure = _figure(title, description, expr, "", span).decimals(0)
    return figure.thresholds(builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))


def _figure(title: str, description: str, expr: str, legend: str, span: int) -> stat.Panel:
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        # What there was before says nothing of a server that is not scraped any more.
        .with_target(prometheus.Dataquery().expr(expr).legend_format(legend).instant())
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME if legend else BigValueTextMode.VALUE)
        .span(span)
        .height(4)
    )


def rows(title: str, description: str, expr: str, columns: list[str]) -> table.Panel:
    """The label sets of what there is now, these labels of them."""
    query = prometheus.Dataquery().expr(expr).format(PromQueryFormat.TABLE).instant()
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(query)
        .with_transformation(DataTransformerConfig("filterFieldsByName", options={"include": {"names": columns}}))
        .with_transformation(
            DataTransformerConfig("organize", options={"indexByName": {name: at for at, name in enumerate(columns)}})
        )
        .no_value("None.")
        .span(12)
        .height(8)
    )


def density(title: str, description: str, expr: str) -> heatmap.Panel:
    """A histogram over time, of its cumulative buckets."""
    query = _query(expr, "{{le}}").format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(query)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
        .show_legend()
        .span(12)
        .height(8)
    )
