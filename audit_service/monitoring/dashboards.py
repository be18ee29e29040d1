"""Grafana dashboards, made in code: overview, drift, explanations and jobs.

Each has a fixed uid, so that importing one again replaces it, and takes data source and model as variables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

from audit_service.config import MonitoringSettings
from audit_service.monitoring.finite import LEFT_OUT
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.promql import RULES

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
MODEL = 'model=~"$model"'
WIDTH, HEIGHT = 12, 8
FULL = 24


@dataclass(frozen=True)
class Graph:
    """One panel.

    Attributes:
        title: Its title.
        description: What it shows and what to make of it.
        queries: Legend -> expression.
        unit: Of Grafana.
        wide: Whether it takes a whole row.
    """

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    wide: bool = False


def render_all(settings: MonitoringSettings) -> dict[str, dict[str, Any]]:
    """Every dashboard as JSON, by its uid."""
    short = settings.windows[0]
    return {
        "bento-audit-overview": _dashboard("bento-audit-overview", "Audit: overview", _overview(short)),
        "bento-audit-drift": _dashboard("bento-audit-drift", "Audit: drift", _drift(settings.windows)),
        "bento-audit-explanations": _dashboard(
            "bento-audit-explanations", "Audit: explanations and jobs", _explanations()
        ),
    }


def queries(document: Mapping[str, Any]) -> Iterator[str]:
    """Every expression of every panel of a dashboard."""
    for panel in document.get("panels", ()):
        yield from (target["expr"] for target in panel.get("targets", ()))
        yield from queries(panel)


def _overview(window: str) -> list[tuple[str, list[Graph]]]:
    return [
        (
            "Traffic",
            [
                Graph(
                    "Predictions",
                    "Audited predictions a second, by label, over all replicas.",
                    {"{{label}}": f"sum by (label) (rate(audit_predictions_total{{{MODEL}}}[$__rate_interval]))"},
                    "reqps",
                ),
                Graph(
                    "Confidence",
                    "Median and lower decile of the predicted label's probability.",
                    {
                        name: f"histogram_quantile({quantile}, sum by (le) "
                        f"(rate(audit_prediction_confidence_ratio_bucket{{{MODEL}}}[$__rate_interval])))"
                        for name, quantile in (("median", 0.5), ("lower decile", 0.1))
                    },
                    "percentunit",
                ),
            ],
        ),
        (
            "Has anything moved?",
            [
                Graph(
                    f"Population stability index, {window}",
                    "Each signal against the baseline of its own model. The alerts know the threshold of each.",
                    {
                        **{
                            f"{{{{model}}}} {name}": f"{rule.drift_record('psi', window)}{{{MODEL}}}"
                            for name, rule in RULES.items()
                            if name != "influence"
                        },
                        "{{model}} influence by {{by}}": f"{RULES['influence'].drift_record('psi', window)}{{{MODEL}}}",
                    },
                    wide=True,
                )
            ],
        ),
        (
            "What is served",
            [
                Graph(
                    "Training examples in the index",
                    "Zero where an index is no longer in use.",
                    {"{{model}}": f"max by (model) (audit_index_rows{{{MODEL}}})"},
                ),
                Graph(
                    "Age of the index",
                    "Since it was built.",
                    {"{{model}}": f"time() - max by (model) (audit_index_created_timestamp_seconds{{{MODEL}}} > 0)"},
                    "s",
                ),
                Graph(
                    "Lost records",
                    "Predictions that were answered but not recorded, and samples that were not explained.",
                    {"{{reason}}": f"sum by (reason) (increase(audit_records_dropped_total{{{MODEL}}}[{window}]))"},
                ),
                Graph(
                    "Values left out",
                    "NaN and infinite values, such as a confidence, that went into no metric; the model may be broken.",
                    {"{{metric}}": f"sum by (metric) (increase({LEFT_OUT}{{{MODEL}}}[{window}]))"},
                ),
                Graph(
                    "Accuracy",
                    "Of the predictions whose true label has arrived, by true label.",
                    {
                        "{{label}}": f'sum by (label) (audit_outcomes_total{{{MODEL}, outcome="right"}}) / '
                        f"sum by (label) (audit_outcomes_total{{{MODEL}}})"
                    },
                    "percentunit",
                ),
            ],
        ),
    ]


def _drift(windows: list[str]) -> list[tuple[str, list[Graph]]]:
    rows = []
    for name, rule in RULES.items():
        legend = "by {{by}}, " if name == "influence" else ""
        graphs = [
            Graph(
                title,
                f"{title} of {name}, against the baseline.",
                {f"{legend}{window}": f"{rule.drift_record(statistic, window)}{{{MODEL}}}" for window in windows},
            )
            for statistic, title in (("psi", "Population stability index"), ("js", "Jensen-Shannon divergence"))
        ]
        graphs.append(
            Graph(
                "Shares",
                f"Share of each bin of {name} within {windows[0]}.",
                {"{{bin}}": f"{rule.share_record(windows[0])}{{{MODEL}}}"},
                "percentunit",
            )
        )
        graphs.append(
            Graph(
                "Moved against the reference",
                "Positive where a bin has more than in the baseline.",
                {
                    "{{bin}}": f"{rule.share_record(windows[0])}{{{MODEL}}} - on "
                    f"({', '.join((*rule.keys, 'bin'))}) {rule.baseline()}"
                },
                "percentunit",
            )
        )
        rows.append((name.capitalize(), graphs))
    rows.append(
        (
            "Known and unknown inputs",
            [
                Graph(
                    "Outside the index",
                    "Share of the sampled predictions whose gradient the index keeps little of.",
                    {window: f"model:audit_queries_outside_index_share:{window}{{{MODEL}}}" for window in windows},
                    "percentunit",
                ),
                Graph(
                    "Volume",
                    "Predictions and sampled explanations within the windows; below the minimum no alert fires.",
                    {
                        f"{kind}s, {window}": f"model:audit_{kind}_volume:{window}{{{MODEL}}}"
                        for kind in ("prediction", "explanation")
                        for window in windows
                    },
                ),
            ],
        )
    )
    return rows


def _explanations() -> list[tuple[str, list[Graph]]]:
    seconds = "audit_explanation_duration_seconds"
    return [
        (
            "Explanations",
            [
                Graph(
                    "Answers",
                    "By tier and outcome.",
                    {
                        "{{tier}} {{outcome}}": "sum by (tier, outcome) "
                        f"(rate(audit_explanations_total{{{MODEL}}}[$__rate_interval]))"
                    },
                    "reqps",
                ),
                Graph(
                    "Time of an explanation",
                    "As the asking service sees it.",
                    {
                        name: f"histogram_quantile({quantile}, sum by (le) "
                        f'(rate({seconds}_bucket{{{MODEL}, stage="total"}}[$__rate_interval])))'
                        for name, quantile in (("median", 0.5), ("95%", 0.95))
                    },
                    "s",
                ),
                Graph(
                    "Time of each stage",
                    "Mean of a batch, in the engine.",
                    {
                        "{{stage}}": f"sum by (stage) (rate({seconds}_sum{{{MODEL}}}[$__rate_interval])) / "
                        f"sum by (stage) (rate({seconds}_count{{{MODEL}}}[$__rate_interval]))"
                    },
                    "s",
                ),
                Graph(
                    "Concentration of influence",
                    "Median share of all influence that the ten strongest examples of a sampled explanation carry.",
                    {
                        "median": "histogram_quantile(0.5, sum by (le) "
                        f"(rate(audit_influence_top_share_ratio_bucket{{{MODEL}}}[$__rate_interval])))"
                    },
                    "percentunit",
                ),
                Graph(
                    "Samples that were not explained",
                    "The queue was full, or the engine did not answer.",
                    {
                        "{{reason}}": "sum by (reason) "
                        f'(increase(audit_records_dropped_total{{{MODEL}, reason=~"sample_.*"}}[$__rate_interval]))'
                    },
                ),
                Graph(
                    "Measured against estimated",
                    "Measured explanations whose change was at most so many times the estimate.",
                    {"up to {{le}}": f"sum by (le) (audit_influence_fidelity_ratio_bucket{{{MODEL}}})"},
                ),
            ],
        ),
        (
            "Jobs and outcomes",
            [
                Graph("Jobs", "By state.", {"{{state}}": f"sum by (state) (audit_jobs{{{MODEL}}})"}),
                Graph(
                    "True labels that arrived",
                    "Right and wrong predictions.",
                    {"{{outcome}}": f"sum by (outcome) (audit_outcomes_total{{{MODEL}}})"},
                ),
                Graph(
                    "Calibration",
                    "Predictions whose true label arrived, by confidence; of each bar, compare right with all.",
                    {
                        "up to {{le}} {{outcome}}": "sum by (le, outcome) "
                        f"(audit_outcome_confidence_ratio_bucket{{{MODEL}, "
                        f'le=~"{"|".join(bound(one).replace(".", "[.]") for one in CONFIDENCE_BUCKETS)}"}})'
                    },
                ),
                Graph(
                    "Accuracy by group",
                    "Of the groups that the config names.",
                    {"{{group}} {{outcome}}": f"sum by (group, outcome) (audit_outcomes_by_group_total{{{MODEL}}})"},
                ),
            ],
        ),
    ]


def _dashboard(uid: str, title: str, rows: list[tuple[str, list[Graph]]]) -> dict[str, Any]:
    builder = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["bento-audit"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(SOURCE)
            .query("label_values(audit_predictions_total, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for name, graphs in rows:
        builder = builder.with_row(dashboard.Row(name))
        for graph in graphs:
            builder = builder.with_panel(_panel(graph))
    document: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(builder.build()))
    return document


def _panel(graph: Graph) -> Any:
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .description(graph.description)
        .datasource(SOURCE)
        .unit(graph.unit)
        .span(FULL if graph.wide else WIDTH)
        .height(HEIGHT)
        .fill_opacity(10)
    )
    for number, (legend, expression) in enumerate(graph.queries.items()):
        panel = panel.with_target(
            prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        )
    return panel
