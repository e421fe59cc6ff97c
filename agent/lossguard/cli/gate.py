"""`lossguard gate`: asks the service whether an export may be served, and makes it visible if it may.

Exit codes: 0 pass, 1 block, 2 wrong use, 3 insufficient data, 4 the service gave no answer. Everything but 0 means that
nothing was published. `--format json` prints one document on standard output, also for errors; words go to standard
error.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from lossguard.gate.client import Answer, Question

app = typer.Typer(
    name="gate", help="Ask whether an export may be served, and publish it if it may.", no_args_is_help=True
)

RunOption = Annotated[
    str, typer.Option("--run", metavar="[PROJECT/]RUN", help="The run that made the export; the project is default.")
]
StepOption = Annotated[int, typer.Option("--step", help="The last step trained into the export.")]
ArtifactOption = Annotated[Path, typer.Option("--artifact", metavar="DIR", help="The exported folder or file.")]
PolicyOption = Annotated[str, typer.Option("--policy", help="The policy to judge by.")]
ServiceOption = Annotated[
    str,
    typer.Option("--service", metavar="URL", envvar="LOSSGUARD_SERVICE", help="Where the service of the team answers."),
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="LOSSGUARD_TOKEN", show_default=False, help="With the scope gate.")
]
MetricsOption = Annotated[
    Path | None,
    typer.Option("--metrics", metavar="FILE", help='JSON from held-out data: {"auc/click": 0.67, ...}.'),
]
CanaryOption = Annotated[
    Path | None,
    typer.Option("--canary", metavar="FILE", help="Rows (.npz or JSON) that the exported model must answer."),
]
AttemptOption = Annotated[
    str | None, typer.Option("--attempt", metavar="HEX", help="The attempt that exported, where it is known.")
]
WaitOption = Annotated[
    str, typer.Option("--wait", metavar="TIME", help="Ask again for so long while data is missing: 90s, 10m, 1h.")
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="KEY", envvar="LOSSGUARD_GATE_KEY", help="Accept verdicts signed by this key (or file) only."
    ),
]
FormatOption = Annotated[str, typer.Option("--format", help="table or json.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="The version to publish; by default the next one.")
]
SERVICE = "http://127.0.0.1:8080"


@app.command()
def check(
    run: RunOption,
    step: StepOption,
    artifact: ArtifactOption,
    policy: PolicyOption = "default",
    service: ServiceOption = SERVICE,
    token: TokenOption = None,
    metrics: MetricsOption = None,
    canary: CanaryOption = None,
    attempt: AttemptOption = None,
    wait: WaitOption = "0s",
    publish_to: Annotated[
        Path | None,
        typer.Option("--publish-to", metavar="DIR", help="Publish there if the verdict is pass."),
    ] = None,
    version: VersionOption = None,
    key: KeyOption = None,
    format: FormatOption = "table",
) -> None:
    """Ask whether an export may be served; the exit code is the answer.

    Example: lossguard gate check --run ranker --step 5000 --artifact export/ --publish-to serving/ranker
    """
    from lossguard.gate.publish import publish as publish_export
    from lossguard.gate.signature import check_signature, read_keys

    if version is not None and publish_to is None:
        usage("--version", "goes with --publish-to", format)
    with gate_errors(format):
        trusted = read_keys(key or [])
        question = _question(run, step, artifact, policy, metrics, canary, attempt, format)
        answer = _ask(question, service, token, seconds_of(wait, "--wait", format), format)
        if trusted:
            check_signature(answer.verdict, answer.document, trusted)
        place = None
        if publish_to is not None and answer.verdict.outcome == "pass":
            place = publish_export(
                artifact, publish_to, answer.verdict, version, document=answer.document, keys=trusted
            )
        _finish(answer, place, format, service)


@app.command()
def publish(
    run: RunOption,
    step: StepOption,
    artifact: ArtifactOption,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder that TensorFlow Serving watches.")],
    policy: PolicyOption = "default",
    service: ServiceOption = SERVICE,
    token: TokenOption = None,
    metrics: MetricsOption = None,
    canary: CanaryOption = None,
    attempt: AttemptOption = None,
    wait: WaitOption = "0s",
    version: VersionOption = None,
    key: KeyOption = None,
    format: FormatOption = "table",
) -> None:
    """Ask, and if the answer is pass, make the export visible as <DIR>/<version>/ in one step.

    Example: lossguard gate publish --run ranker --step 5000 --artifact export/ --to serving/ranker
    """
    check(run, step, artifact, policy, service, token, metrics, canary, attempt, wait, to, version, key, format)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="VERDICT|DIR", help="A verdict's id, or a published model's folder.")],
    service: ServiceOption = SERVICE,
    token: TokenOption = None,
    format: FormatOption = "table",
) -> None:
    """Say why an export passed or did not; exit code 0 when the verdict was found.

    Example: lossguard gate explain serving/ranker/7
    """
    from rich.console import Console

    from lossguard.cli.gate_words import show_verdict
    from lossguard.gate.client import find, open_client
    from lossguard.gate.verify import read_document

    known_format(format)
    with gate_errors(format):
        if Path(what).exists():
            answer = read_document(Path(what))
        else:
            with open_client(service, token=token) as client:
                answer = find(client, what)
        if format == "json":
            typer.echo(json.dumps(answer.document, indent=1, ensure_ascii=False))
        else:
            show_verdict(Console(), answer.verdict, service=service)


def _question(
    run: str,
    step: int,
    artifact: Path,
    policy: str,
    metrics: Path | None,
    canary: Path | None,
    attempt: str | None,
    format: str,
) -> "Question":
    from lossguard.gate.client import question_about

    known_format(format)
    project, name = names(run, format)
    if step < 1:
        usage("--step", f"must be 1 or more, got {step}: name the last step trained into the export", format)
    values = _metrics(metrics, format)
    return question_about(
        artifact, project, name, step, policy=policy, metrics=values, attempt=attempt, canary_rows=canary
    )


def _metrics(path: Path | None, format: str) -> dict[str, float]:
    from lossguard.wire.numbers import from_json_number

    if path is None:
        return {}
    wanted = 'a JSON object of numbers, for example {"auc/click": 0.67}'
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        usage("--metrics", f"{path} cannot be read ({error.strerror}): write the evaluation's result there", format)
    except ValueError as error:
        usage("--metrics", f"{path} is not JSON ({error}): write {wanted}", format)
    if not isinstance(document, Mapping):
        usage("--metrics", f"{path} holds no object: write {wanted}", format)
    values = {}
    for name, value in document.items():
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            values[name] = from_json_number(value)
        except (ValueError, OverflowError):
            usage("--metrics", f"{name} in {path} is {value!r}: write {wanted}", format)
    return values


def _ask(question: "Question", service: str, token: str | None, seconds: float, format: str) -> "Answer":
    from rich.console import Console

    from lossguard.gate import client as gate

    with gate.open_client(service, token=token) as client:
        if seconds <= 0:
            return gate.ask(client, question)
        console = Console(stderr=True)
        with console.status("asking the gate ...") as status:

            def said(answer: "Answer") -> None:
                status.update(f"waiting: {answer.verdict.reasons[0]}")

            return gate.wait(client, question, seconds, said=said)


def _finish(answer: "Answer", place: Path | None, format: str, service: str) -> NoReturn:
    from rich.console import Console

    from lossguard.cli.gate_words import show_verdict
    from lossguard.wire.verdict import EXIT_CODES

    if format == "json":
        document = answer.document | {"published": None if place is None else str(place)}
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        console = Console()
        show_verdict(console, answer.verdict, service=service)
        if place is not None:
            console.print(f"[green]published[/] {place}", highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[answer.verdict.outcome])


@contextmanager
def gate_errors(format: str) -> Iterator[None]:
    """Turns the gate's errors into a sentence and the exit code that goes with it."""
    from lossguard.gate import errors
    from lossguard.wire.verdict import EXIT_CODES, EXIT_UNREACHABLE, EXIT_USAGE

    try:
        yield
    except errors.GateUnreachable as error:
        _fail(str(error), EXIT_UNREACHABLE, format)
    except (errors.NotPublished, errors.NotVerified) as error:
        _fail(str(error), EXIT_CODES["block"], format)
    except errors.ArtifactChanged as error:
        _fail(str(error), EXIT_CODES["insufficient_data"], format)
    except errors.GateError as error:
        _fail(str(error), EXIT_USAGE, format)


def seconds_of(text: str, option: str, format: str) -> float:
    """A time such as 90s, 10m or 1h, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if found is None:
        usage(option, f"write a time such as 90s, 10m or 1h, got {text!r}", format)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def names(run: str, format: str) -> tuple[str, str]:
    """Project and run of a --run option."""
    project, _, name = run.rpartition("/")
    if not name or run.startswith("/") or "/" in project:
        usage("--run", f"write RUN or PROJECT/RUN, got {run!r}", format)
    return project or "default", name


def known_format(format: str, known: Sequence[str] = ("table", "json")) -> None:
    """Refuse a format that there is not."""
    if format not in known:
        usage("--format", f"must be {', '.join(known[:-1])} or {known[-1]}, got {format!r}", "table")


def usage(option: str, sentence: str, format: str) -> NoReturn:
    """Say what is wrong with an option, and exit 2."""
    from lossguard.wire.verdict import EXIT_USAGE

    _fail(f"{option}: {sentence}", EXIT_USAGE, format)


def _fail(sentence: str, code: int, format: str) -> NoReturn:
    if format == "json":
        document: dict[str, Any] = {"outcome": None, "error": sentence, "published": None}
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(code)
