"""Grafana's JSON of a dashboard, made with the Grafana Foundation SDK."""

import json
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.board import Board, Panel
from dashboards.boards import ANNOTATIONS
from lossguard_service.metrics import names as n

_NAMES: Final = f"{n.RUN_LAST_STEP.name}|{n.VERDICTS.name}"
_ALL: Final = models.VariableOption(text="All", value="$__all", selected=True)
_PAGE: Final = "${lossguard_url}/runs/"
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
    where = "/runs/${project}/${run}" if "run" in board.variables else "/"
    made = made.link(
        dashboard.DashboardLink("Open in Lossguard")
        .type(models.DashboardLinkType.LINK)
        .url("${lossguard_url}" + where)
        .target_blank(True)
    )
    if "project" in board.variables:
        made = made.with_variable(_project(takes_all="run" not in board.variables))
    if "run" in board.variables:
        made = made.with_variable(_variable("run", f'label_values({n.RUN_LAST_STEP.name}{{project="$project"}}, run)'))
    for one in ANNOTATIONS:
        made = made.annotation(
            dashboard.AnnotationQuery()
            .name(one.name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(one.colour)
            .expr(one.expression(board))
        )
    for panel in board.panels:
        made = made.with_panel(_panel(panel))
    document: Any = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for annotation, one in zip(document["annotations"]["list"], ANNOTATIONS, strict=True):
        # What only the Prometheus data source knows of an annotation is not in the SDK.
        annotation |= {"titleFormat": one.title, "textFormat": one.text, "tagKeys": "project,run", "step": "15s"}
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _project(*, takes_all: bool) -> dashboard.QueryVariable:
    made = _variable("project", f"label_values({{__name__=~{_NAMES!r}}}, project)".replace("'", '"'))
    return made.multi(True).include_all(True).all_value(".*").current(_ALL) if takes_all else made


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
    if panel.leads_to_run:
        names = ("${__data.fields.project}", "${__data.fields.run}")
        if panel.kind != "table":
            names = ("${__field.labels.project}", "${__field.labels.run}")
        link = dashboard.DashboardLink("Open the run in Lossguard").type(models.DashboardLinkType.LINK)
        made = made.data_links([link.url(_PAGE + "/".join(names)).target_blank(True)])
    made = made.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit).span(panel.width)
    for place, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(chr(ord("A") + place))
        if panel.kind == "table":
            asked = asked.instant().format(PromQueryFormat.TABLE)
        elif panel.kind == "stat":
            asked = asked.instant()
        made = made.with_target(asked)
    return made
