"""Every generated file and its text."""

from typing import Any

import yaml

from dashboards.alerts import LOCAL, Rules
from dashboards.boards import BOARDS
from dashboards.panels import build

_NOTE = "# Written by `python -m dashboards`; change dashboards/alerts.py instead.\n"
_LINKS = f"# Links lead to {LOCAL}: replace that by where people reach the service.\n"


def files() -> dict[str, str]:
    """File name below `generated/` to text."""
    rules = Rules()
    return {
        "prometheus/lossguard.rules.yml": _yaml(rules.prometheus()),
        "grafana/provisioning/alerting/lossguard.yml": _LINKS + _yaml(rules.grafana()),
        **{f"grafana/dashboards/{board.uid}.json": build(board) for board in BOARDS},
    }


def _yaml(document: Any) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)
    return _NOTE + text
