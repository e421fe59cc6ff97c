"""Grafana's JSON of a dashboard, made with the Grafana Foundation SDK."""

import json
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.boards import ANNOTATIONS, Board, Panel
from lossguard_service.metrics import names as n

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def build(board: Board) -> str:
    """Grafana's JSON of a dashboard, the same bytes every time."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["lossguard"])
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.TextBoxVariable("lossguard_url").label("Lossguard").default_value("http://localhost:8080")
        )
        .link(
            dashboard.DashboardLink("Dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["lossguard"])
            .as_dropdown(True)
        )
    )
    where = "/runs/${project}/${run}" if board.of_run else "/"
    made = made.link(
        dashboard.DashboardLink("Open in Lossguard")
        .type(models.DashboardLinkType.LINK)
        .url("${lossguard_url}" + where)
        .target_blank(True)
    )
    if board.of_run:
        made = made.with_variable(_variable("project", f"label_values({n.RUN_LAST_STEP.name}, project)"))
        made = made.with_variable(_variable("run", f'label_values({n.RUN_LAST_STEP.name}{{project="$project"}}, run)'))
    for name, colour, expression in ANNOTATIONS:
        made = made.annotation(
            dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).expr(expression)
        )
    for panel in board.panels:
        made = made.with_panel(_panel(panel))
    document: Any = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel) -> Any:
    made: Any
    if panel.kind == "stat":
        made = stat.Panel().height(4).graph_mode(common.BigValueGraphMode.NONE)
        if panel.red_from is not None:
            steps = [models.Threshold(None, "green"), models.Threshold(panel.red_from, "red")]
            made = made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
            made = made.color_mode(common.BigValueColorMode.VALUE)
    elif panel.kind == "table":
        made = table.Panel().height(7)
    else:
        made = timeseries.Panel().height(8).fill_opacity(0).line_width(1.5)
        if panel.logarithmic:
            scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
            made = made.scale_distribution(scale)
    made = made.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit).span(panel.width)
    for place, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(chr(ord("A") + place))
        if panel.kind == "table":
            asked = asked.instant().format(PromQueryFormat.TABLE)
        elif panel.kind == "stat":
            asked = asked.instant()
        made = made.with_target(asked)
    return made
