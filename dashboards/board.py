"""What a Grafana dashboard of ours is made of, as data; `dashboards.panels` makes Grafana's JSON of it."""

from dataclasses import dataclass
from typing import Final, Literal

from lossguard_service.metrics import names as n

RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title, description: what it shows; the description says how to read it.
        queries: what it asks.
        kind: `stat` for one number now, `graph` over time, `table` for rows now.
        unit: Grafana's name of a unit.
        width: of 24 columns.
        red_from: a stat turns red from this value on; None for never.
        logarithmic: True for a logarithmic axis.
        leads_to_run: a click on a row or a series leads to the page of its run.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["stat", "graph", "table"] = "graph"
    unit: str = "short"
    width: int = 12
    red_from: float | None = None
    logarithmic: bool = False
    leads_to_run: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard.

    Attributes:
        uid, title, description: as Grafana shows it.
        panels: from top left to bottom right.
        variables: `project` and `run`, as far as its queries use them; `project` alone takes several, or all.
    """

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    variables: tuple[str, ...] = ()


def of_runs(metric: n.Metric, selector: str = "", by: str = "project, run") -> str:
    """A metric of runs with what tells replicas apart dropped; `by` says which labels stay."""
    return f"max by ({by}) ({metric.name}{'{' + selector + '}' if selector else ''})"
