"""The list of runs as its template needs it: filter, sort, pages, rows. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from lossguard.wire.verdict import Verdict
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.runs import Run
from lossguard_service.web import story
from lossguard_service.web.spark import EMPTY, Spark
from lossguard_service.web.words import KINDS, OUTCOMES, PHASES, STATES, incident_path, number, run_path

PAGE_ROWS: Final = 50
_BADNESS: Final = {"diverged": 0, "recovered": 1, "healthy": 2}
_FILTERS: Final = (*STATES.items(), ("running", "Training"), ("stalled", "Silent"))
_COLUMNS: Final = (
    ("state", "State"),
    ("run", "Run"),
    ("loss", "Loss"),
    ("incident", "Open incident"),
    ("verdict", "Last verdict"),
    ("step", "Last step"),
    ("seen", "Last seen"),
)
_SORTABLE: Final = {"state", "run", "step", "seen"}
_ASCENDING: Final = {"state", "run"}


@dataclass(frozen=True, slots=True)
class Query:
    """What the address asks for; anything unknown means the default.

    Attributes:
        q: part of the run's name, in any case.
        state: a status or a phase; empty for any.
        project: empty for any.
        sort: a column, with `-` in front for the other direction.
        page: 1, 2, ...
    """

    q: str = ""
    state: str = ""
    project: str = ""
    sort: str = "seen"
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Query":
        """From an address."""
        state, sort, page = parameters.get("state", ""), parameters.get("sort", "seen"), parameters.get("page", "1")
        return cls(
            q=parameters.get("q", "").strip()[:200],
            state=state if state in dict(_FILTERS) else "",
            project=parameters.get("project", "")[:512],
            sort=sort if sort.removeprefix("-") in _SORTABLE else "seen",
            page=max(1, int(page[:6])) if page.isascii() and page.isdigit() else 1,
        )

    def href(self) -> str:
        """The address."""
        values = {"q": self.q, "state": self.state, "project": self.project}
        chosen = {key: value for key, value in values.items() if value}
        if self.sort != "seen":
            chosen["sort"] = self.sort
        if self.page > 1:
            chosen["page"] = str(self.page)
        return f"/?{urlencode(chosen)}" if chosen else "/"


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; `sorted` is what `aria-sort` takes, empty if the table is not sorted by it."""

    key: str
    label: str
    href: str
    sorted: str


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """What a row says about the worst open incident."""

    label: str
    step: int
    task: str
    href: str


@dataclass(frozen=True, slots=True)
class LastVerdict:
    """What a row says about the newest verdict."""

    outcome: str
    label: str
    step: int


@dataclass(frozen=True, slots=True)
class RunRow:
    """One row."""

    run: Run
    href: str
    status_label: str
    phase_label: str
    seen_seconds: float
    rate: str
    incident: OpenIncident | None
    spark: Spark = EMPTY
    verdict: LastVerdict | None = None


@dataclass(frozen=True, slots=True)
class RunsView:
    """The page."""

    query: Query
    rows: tuple[RunRow, ...]
    columns: tuple[Column, ...]
    total: int
    open_total: int
    filtered: bool
    projects: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    page: int
    pages: int
    previous: str
    next: str
    address: str


def view(
    runs: Sequence[Run],
    opened: Sequence[tuple[int, StoredIncident]],
    query: Query,
    *,
    now: float,
    stalled_seconds: float,
    address: str,
) -> RunsView:
    """The page without sparklines and verdicts, which only the rows on it need (`complete`)."""
    worst: dict[int, StoredIncident] = {}
    for run_id, stored in opened:
        if stored.incident.severity != "info" and (
            run_id not in worst or story.rank(stored) < story.rank(worst[run_id])
        ):
            worst[run_id] = stored
    kept = [run for run in runs if _matches(run, query, now, stalled_seconds)]
    key = query.sort.removeprefix("-")
    order = {
        "state": lambda run: (_BADNESS[run.status], run.id not in worst, -run.last_seen),
        "run": lambda run: (run.project, run.name),
        "step": lambda run: -(run.last_step or 0),
        "seen": lambda run: (-run.last_seen, -run.id),
    }[key]
    kept.sort(key=order, reverse=query.sort.startswith("-"))
    pages = max(1, -(-len(kept) // PAGE_ROWS))
    page = min(query.page, pages)
    shown = kept[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    return RunsView(
        query=query,
        rows=tuple(_row(run, worst.get(run.id), now, stalled_seconds) for run in shown),
        columns=tuple(_column(key, label, query) for key, label in _COLUMNS),
        total=len(runs),
        open_total=len(worst),
        filtered=bool(query.q or query.state or query.project),
        projects=tuple(sorted({run.project for run in runs} | ({query.project} if query.project else set()))),
        states=_FILTERS,
        page=page,
        pages=pages,
        previous=replace(query, page=page - 1).href() if page > 1 else "",
        next=replace(query, page=page + 1).href() if page < pages else "",
        address=address,
    )


def complete(row: RunRow, spark: Spark, verdicts: Sequence[Verdict]) -> RunRow:
    """A row with what had to be read for it alone."""
    if not verdicts:
        return replace(row, spark=spark)
    newest = verdicts[0]
    return replace(row, spark=spark, verdict=LastVerdict(newest.outcome, OUTCOMES[newest.outcome], newest.step))


def _matches(run: Run, query: Query, now: float, stalled_seconds: float) -> bool:
    return (
        (not query.q or query.q.casefold() in run.name.casefold())
        and (not query.project or run.project == query.project)
        and (not query.state or query.state in (run.status, run.phase(now, stalled_seconds)))
    )


def _row(run: Run, incident: StoredIncident | None, now: float, stalled_seconds: float) -> RunRow:
    phase = run.phase(now, stalled_seconds)
    rate = run.summary.get("steps_per_second")
    return RunRow(
        run=run,
        href=run_path(run.project, run.name),
        status_label=STATES[run.status],
        phase_label=PHASES[phase],
        seen_seconds=now - run.last_seen,
        rate=f"{number(rate, 3)} steps/s" if phase == "running" and isinstance(rate, int | float) else "",
        incident=None
        if incident is None
        else OpenIncident(
            label=KINDS[incident.incident.kind],
            step=incident.incident.onset_step,
            task=incident.incident.tasks[0] if incident.incident.tasks else "",
            href=incident_path(run.project, run.name, incident.sequence),
        ),
    )


def _column(key: str, label: str, query: Query) -> Column:
    if key not in _SORTABLE:
        return Column(key, label, "", "")
    current = query.sort.removeprefix("-") == key
    turned = query.sort.startswith("-")
    href = replace(query, sort=f"-{key}" if current and not turned else key, page=1).href()
    ascending = (key in _ASCENDING) != turned
    return Column(key, label, href, ("ascending" if ascending else "descending") if current else "")


def with_rows(view: RunsView, rows: Sequence[RunRow]) -> RunsView:
    """The page with other rows."""
    return replace(view, rows=tuple(rows))
