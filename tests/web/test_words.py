"""What the pages say, without a server."""

import doctest
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from lossguard.wire.incident import KINDS, Incident, Mover
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.checkpoints import Checkpoint
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.runs import Run
from lossguard_service.web import charts, compare, runbooks, runs_view, spark, story, words

FULL = Incident(
    number=0,
    kind="full_divergence",
    onset_step=259,
    detected_step=261,
    declared_full_step=310,
    end_step=None,
    peak_step=264,
    peak=1.2e6,
    residual=0.42,
    first_signal_step=257,
    first_layer="shared0/kernel",
    tasks=("click", "long_view"),
    confidence=0.97,
    explanation="Click collapsed.",
    advice="Go back to step 200.",
)
KNOWN = {
    "id": 1,
    "project": "ranker",
    "name": "plain",
    "config": {},
    "status": "diverged",
    "attempt": 1,
    "first_step": 1,
    "last_step": 420,
    "judged_step": 420,
    "last_seen": 1000.0,
    "last_progress": 1000.0,
    "summary": {},
}
RUN = Run(**{field.name: KNOWN.get(field.name) for field in fields(Run)})  # type: ignore[arg-type]


def stored(incident: Incident, sequence: int = 1, *, superseded: bool = False) -> StoredIncident:
    return StoredIncident(sequence, incident, superseded, 0.0, 0.0)


def series(values: list[float], first: int = 1) -> Buckets:
    column = np.array(values, np.float64)[:, None]
    steps = np.arange(first, first + len(values))
    bad = (~np.isfinite(column)).astype(np.int64)
    return Buckets(steps, steps, np.ones_like(bad), bad, column, column, column)


@pytest.mark.parametrize("module", [words, charts, compare, runbooks])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_the_headline_of_a_full_divergence_names_task_step_layer_and_where_to_go_back() -> None:
    target = Checkpoint(1, 200, "checkpoints/200", has_slots=True, time=0.0)
    card = story.headline(RUN, [stored(FULL)], "running", 0.0, target)
    assert card.tone == "critical"
    assert card.title == "Training diverged at step 259 and did not recover: tasks click and long_view have collapsed."
    facts = {fact.label: f"{fact.text} {fact.code or ''}".strip() for fact in card.facts}
    assert facts["Broke first"] == "task click, at step 259, then long_view"
    assert facts["Moved first"] == "at step 257, 2 steps before the loss: shared0/kernel"
    assert facts["Flagged"] == "at step 261, 2 steps after the onset"
    assert facts["Its loss settled"] == "42% worse than before"
    assert facts["Roll back"].startswith("to step 200")
    assert facts["Roll back"].endswith("checkpoints/200")
    assert card.advice == "Go back to step 200."


def test_the_headline_is_about_what_is_open_and_worst_not_about_what_came_first() -> None:
    micro = replace(FULL, number=1, kind="micro_divergence", onset_step=50, end_step=90)
    card = story.headline(RUN, [stored(micro, 1), stored(FULL, 2)], "running", 0.0, None)
    assert card.sequence == 2


def test_a_superseded_incident_no_longer_makes_the_headline() -> None:
    card = story.headline(replace(RUN, status="healthy"), [stored(FULL, superseded=True)], "running", 0.0, None)
    assert card.tone == "good"
    assert card.title == "Healthy: 420 steps judged, no divergence."


def test_silence_is_a_headline_of_its_own() -> None:
    card = story.headline(replace(RUN, status="healthy"), [], "stalled", 900.0, None)
    assert card.title.startswith("Silent for 15 min: the last frame was step 420")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [None, 300])
@pytest.mark.parametrize("bare", [True, False])
def test_every_kind_of_incident_has_a_title_and_a_timeline_in_order(kind: str, end: int | None, bare: bool) -> None:
    incident = replace(FULL, kind=kind, end_step=end)  # type: ignore[arg-type]
    if bare:
        incident = replace(incident, tasks=(), first_layer=None, first_signal_step=None, declared_full_step=None)
    one = stored(replace(incident, peak=math.inf, residual=math.nan))
    card = story.of_incident(one, None, 420)
    assert card.title.endswith(".")
    assert "None" not in repr(card.title)
    assert "nan" not in card.title
    steps = [moment.step for moment in story.timeline(one, 420)]
    assert steps == sorted(steps)


def test_a_layer_that_moved_after_the_onset_is_no_first_signal() -> None:
    mover = Mover("layer", "shared0/kernel", 262, 40.0)
    one = stored(replace(FULL, first_signal_step=None, movers=(mover,)))
    moments = {moment.title: moment.step for moment in story.timeline(one, 420)}
    assert moments["First layer"] == 262
    assert "First signal" not in moments


def test_normalized_entropy_of_the_constant_predictor_is_one() -> None:
    mean = 0.3
    constant = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
    normalized = charts.normalize(series([constant] * 4), series([mean] * 4))
    assert normalized.mean[:, 0] == pytest.approx(1.0)


def test_a_nan_in_a_series_stays_in_the_document() -> None:
    plan = charts.plan({"click": "binary"}, ("loss", "loss/click", "batch_auc/click"))
    document = charts.document(plan, {"loss": series([1.0, math.nan, math.inf, 2.0])})
    line = document["charts"][0]["lines"][0]
    assert line["mean"] == [1.0, "NaN", "Infinity", 2.0]
    assert line["nonfinite"] == [0, 1, 1, 0]


def test_a_sparkline_marks_what_is_not_finite_and_says_so() -> None:
    line = spark.spark(series([1.0, math.nan, 1e9, 2.0]))
    assert len(line.marks) == 1
    assert "NaN or Inf" in line.text
    assert len(line.line.split()) == 3
    assert spark.spark(series([math.nan])).text == "loss: only NaN or Inf"
    assert spark.spark(series([])) == spark.EMPTY


def test_an_address_with_nonsense_in_it_means_the_default() -> None:
    query = runs_view.Query.of({"sort": "'; drop", "page": "٣", "state": "sick", "q": " a "})
    assert query == runs_view.Query(q="a")
    assert runs_view.Query.of({"page": "9" * 5000}).page > 1


def test_runs_are_filtered_sorted_and_paged() -> None:
    runs = [
        replace(RUN, id=at, name=f"run-{at:03}", status="healthy" if at % 3 else "diverged", last_seen=float(at))
        for at in range(120)
    ]
    view = runs_view.view(
        runs, [], runs_view.Query(state="diverged", sort="run"), now=120.0, stalled_seconds=300, address=""
    )
    assert [row.run.name for row in view.rows[:2]] == ["run-000", "run-003"]
    assert len(view.rows) == 40
    view = runs_view.view(runs, [], runs_view.Query(page=3), now=120.0, stalled_seconds=300, address="")
    assert len(view.rows) == 20
    assert view.pages == 3
    assert view.next == ""
    assert view.previous == "/?page=2"
    assert next(column for column in view.columns if column.key == "seen").sorted == "descending"
