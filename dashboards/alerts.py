"""Alert rules, once, for Prometheus and for Grafana-managed alerting.

Detectors have judged before an alert sees anything, so alerts about incidents have no `for:`; and a divergence that
lived for five steps stays in the metrics for 15 minutes, so that no scrape interval misses it. Every replica tells the
same about a run, so rules drop the labels that tell replicas apart: two replicas page once. Links need to know where
the service is: the external label `lossguard_url` of Prometheus says it.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from lossguard_service.metrics import names

URL: Final = "{{ $externalLabels.lossguard_url }}"
LOCAL: Final = "http://localhost:8080"
"""What Grafana-managed rules say instead: replace it in the generated file by where people reach the service."""
RUN: Final = "{{ $labels.project }}/{{ $labels.run }}"
JOB: Final = "lossguard"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule.

    Attributes:
        name: also the name of its runbook, `docs/runbooks/<name>.md`.
        expression: PromQL; each series that it returns is an alert.
        severity: `critical` pages, `warning` waits for the morning.
        summary, description: templates; the summary names what is hit.
        hold: Prometheus' `for`; empty for at once.
        about_run: True if the labels name a run, to whose page the alert links.
    """

    name: str
    expression: str
    severity: str
    summary: str
    description: str
    hold: str = ""
    about_run: bool = True

    def labels(self) -> dict[str, str]:
        """What routing can match."""
        return {"severity": self.severity, "product": "lossguard"}

    def annotations(self) -> dict[str, str]:
        """What a person reads."""
        linked = {"dashboard_url": f"{URL}/runs/{RUN}"} if self.about_run else {}
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{URL}/runbooks/{self.name}",
            **linked,
        }

    def prometheus(self) -> dict[str, Any]:
        """The rule in Prometheus' form."""
        wait = {"for": self.hold} if self.hold else {}
        return {
            "alert": self.name,
            "expr": self.expression,
            **wait,
            "labels": self.labels(),
            "annotations": self.annotations(),
        }


def _select(metric: names.Metric, **labels: str) -> str:
    return metric.name + "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _open(kind: str) -> str:
    selected = _select(names.RUN_INCIDENT_ONSET, kind=kind, open="true")
    return f"max by (project, run, kind, incident, task, layer) ({selected})"


def _risen(metric: str, by: str, span: str) -> str:
    """How much a count rose; a series that was not there before counts from 0."""
    return f"max by ({by}) ({metric} - ({metric} offset {span} or {metric} * 0))"


_MICRO: Final = "micro_divergence"
_REFUSED: Final = names.VERDICT_STEP.name + '{outcome!="pass"}'
_LAST_STEP: Final = f"max by (project, run) ({names.RUN_LAST_STEP.name})"
_LATE: Final = (
    f"max by (project, run) ({names.RUN_LAST_PROGRESS.name}) - on (project, run) "
    f"max by (project, run) ({names.RUN_NEWEST_FRAME.name}) > 120"
)
_WHERE: Final = (
    "{{ if $labels.task }}task {{ $labels.task }} first{{ else }}the total loss{{ end }}"
    "{{ if $labels.layer }}, layer {{ $labels.layer }} moved first{{ end }}"
)
_OPEN: Final = (
    "{{ with query (printf `topk(1, max by (task, layer) ("
    + names.RUN_INCIDENT_ONSET.name
    + '{project=%q, run=%q, open="true"}))` $labels.project $labels.run) }}{{ with first . }}'
    '; an incident is open since step {{ .Value | printf "%.0f" }}: '
    "{{ if .Labels.task }}task {{ .Labels.task }} first{{ else }}the total loss{{ end }}"
    "{{ if .Labels.layer }}, layer {{ .Labels.layer }} moved first{{ end }}{{ end }}{{ end }}"
)
"""For alerts that are not about an incident themselves: the newest open one of the run, if there is one. Asked for when
the summary is written, so that an incident that begins or ends makes no other alert of it."""
_BATCHES: Final = (
    "{{ with query (printf `"
    + names.RUN_INCIDENT_BATCHES.name
    + "{project=%q, run=%q, incident=%q}` $labels.project $labels.run $labels.incident) }}{{ with first . }}"
    " Batches: {{ .Labels.batches }}.{{ end }}{{ end }}"
)
"""Of a run that records `batch_id`. Asked for when the text is written: known a scrape later, it is no other alert."""
_STEP: Final = '{{ $value | printf "%.0f" }}'

ALERTS: Final = (
    Alert(
        "LossguardFullDivergence",
        _open("full_divergence"),
        "critical",
        f"{RUN} diverged at step {_STEP} and did not recover: {_WHERE}",
        "The model is broken from this step on and will not come back by itself. Checkpoints from after it are bad."
        + _BATCHES,
    ),
    Alert(
        "LossguardNonfinite",
        _open("nonfinite"),
        "critical",
        f"{RUN} has NaN or Inf since step {_STEP}: {_WHERE}",
        "NaN or Inf in gradients, weights or losses. The loss may look healthy: ReLU hides NaN." + _BATCHES,
    ),
    Alert(
        "LossguardNoUpdate",
        _open("no_update"),
        "critical",
        f"{RUN} no longer learns since step {_STEP}: {_WHERE}",
        "The weights have stopped moving although training goes on." + _BATCHES,
    ),
    Alert(
        "LossguardRepeatedMicroDivergence",
        f"topk by (project, run) (1, {_select(names.RUN_INCIDENT_ONSET, kind=_MICRO)}) and on (project, run) "
        f"({_risen(_select(names.RUN_INCIDENTS, kind=_MICRO), 'project, run', '1h')} >= 3)",
        "warning",
        f"{RUN} diverged and recovered at least three times within an hour, last at step {_STEP}: {_WHERE}",
        "Runs that recover again and again tend not to, one day. Half the learning rate or Clippy is what helps."
        + _BATCHES,
    ),
    Alert(
        "LossguardStalled",
        f"{_LAST_STEP} and on (project, run) max by (project, run) ({names.RUN_STALLED.name}) == 1",
        "warning",
        f"{RUN} is silent since step {_STEP}{_OPEN}",
        "No frame has come for longer than `stalled_seconds`, and the trainer did not say that it stopped.",
        hold="2m",
    ),
    Alert(
        "LossguardTelemetryGap",
        f"{_LAST_STEP} and on (project, run) max by (project, run) ({names.RUN_WAITING_CHUNKS.name}) > 0",
        "warning",
        f"{RUN}: steps after {_STEP} are missing, and later ones wait behind the gap{_OPEN}",
        "The detectors stand still before the gap, and the gate answers insufficient_data for exports after it.",
        hold="5m",
    ),
    Alert(
        "LossguardFramesDropped",
        f"({_risen(names.RUN_DROPPED_FRAMES.name, 'project, run, reason', '15m')} > 0) * 0 "
        f"+ on (project, run) group_left {_LAST_STEP}",
        "warning",
        f"{RUN}: the trainer's side dropped frames ({{{{ $labels.reason }}}}) in the 15 minutes up to step {_STEP}"
        f"{_OPEN}",
        "What is dropped is never judged, and the gate knows of the gap. The reason says what to mend.",
    ),
    Alert(
        "LossguardIngestLag",
        f"{_LAST_STEP} and on (project, run) ({_LATE})",
        "warning",
        f"{RUN}: frames after step {_STEP} come more than two minutes late{_OPEN}",
        "The trainer is ahead of what the service has seen: a divergence is told late. Or its clock is wrong.",
        hold="5m",
    ),
    Alert(
        "LossguardDetectorLag",
        f"max by (project, run) ({names.RUN_JUDGED_STEP.name}) and on (project, run) "
        f"({_LAST_STEP} - on (project, run) max by (project, run) ({names.RUN_JUDGED_STEP.name}) > 0)",
        "warning",
        f"{RUN}: steps after {_STEP} are stored but not judged{_OPEN}",
        "Frames after a gap wait for it to fill; without a gap, the detectors failed: the service's log says why.",
        hold="10m",
    ),
    Alert(
        "LossguardGateBlocked",
        f"max by (project, run, outcome, check) ({_REFUSED})",
        "warning",
        f"{RUN}: the gate answered {{{{ $labels.outcome }}}} for the export of step {_STEP}: {{{{ $labels.check }}}}"
        f"{_OPEN}",
        "An export was not allowed into serving. The run's page lists every check with its reason.",
    ),
    Alert(
        "LossguardGateBypassed",
        f"max by (instance, folder, version, moved) ({names.GUARD_UNJUDGED.name}) > 0",
        "critical",
        "{{ $labels.instance }}: version {{ $labels.version }} in {{ $labels.folder }} has no valid verdict"
        '{{ if eq $labels.moved "true" }} and was moved out of sight{{ else }} and can be served{{ end }}',
        "Somebody or something put a model into the serving folder that the gate did not pass.",
        about_run=False,
    ),
    Alert(
        "LossguardServiceDown",
        f'(sum(up{{job="{JOB}"}}) or vector(0)) == 0',
        "critical",
        "No replica of Lossguard answers",
        "Trainers go on and keep everything in their journals; nothing is judged, and the gate lets nothing through.",
        hold="2m",
        about_run=False,
    ),
    Alert(
        "LossguardIngestSlow",
        "histogram_quantile(0.99, sum by (le) (rate("
        f'{names.REPLICA_REQUEST_SECONDS.name}_bucket{{method="PUT"}}[10m]))) > 1',
        "warning",
        '99% of the chunks take up to {{ $value | printf "%.1f" }} s to be stored',
        "Journals grow, and the advice comes late. Look at the database first.",
        hold="10m",
        about_run=False,
    ),
    Alert(
        "LossguardWebhookDown",
        f"time() - max by (destination) ({names.WEBHOOK_OLDEST.name}) > 600",
        "warning",
        "The webhook {{ $labels.destination }} has not been reached for {{ $value | humanizeDuration }}",
        "Who relies on it does not hear of incidents. Notices are kept for a day and sent when it answers again.",
        about_run=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules as the files that the two products read."""

    alerts: tuple[Alert, ...] = field(default=ALERTS)

    def prometheus(self) -> dict[str, Any]:
        """A rule file of Prometheus."""
        return {"groups": [{"name": "lossguard", "rules": [alert.prometheus() for alert in self.alerts]}]}

    def grafana(self) -> dict[str, Any]:
        """A provisioning file of Grafana-managed alerting; the data source's uid is `prometheus`."""
        return {
            "apiVersion": 1,
            "groups": [
                {
                    "orgId": 1,
                    "name": "lossguard",
                    "folder": "Lossguard",
                    "interval": "15s",
                    "rules": [self._grafana(alert) for alert in self.alerts],
                }
            ],
        }

    def _grafana(self, alert: Alert) -> dict[str, Any]:
        # Grafana knows no external labels, fills no environment variables into annotations, and its $value is a text;
        # the rest of a template is the same there.
        # It cannot ask for other series in an annotation either, so open incidents are not told beside other alerts,
        # nor batches in any: the page that an alert links to has them.
        texts = {
            key: text.replace(_OPEN, "").replace(_BATCHES, "").replace(URL, LOCAL).replace("$value", "$values.A.Value")
            for key, text in alert.annotations().items()
        }
        return {
            "uid": alert.name.lower(),
            "title": alert.name,
            "condition": "B",
            "for": alert.hold or "0s",
            "noDataState": "OK",
            "execErrState": "Error",
            "labels": alert.labels(),
            "annotations": texts,
            "data": [
                {
                    "refId": "A",
                    "relativeTimeRange": {"from": 300, "to": 0},
                    "datasourceUid": "prometheus",
                    "model": {"refId": "A", "expr": alert.expression, "instant": True},
                },
                {
                    "refId": "B",
                    "datasourceUid": "__expr__",
                    # Whatever a rule returns is an alert, be its value 0.
                    "model": {"refId": "B", "type": "math", "expression": "is_number($A)"},
                },
            ],
        }
