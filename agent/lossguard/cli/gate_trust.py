"""`lossguard gate verify|guard|keys|policy|waive|audit`: who trusts which verdict, and who answers for exceptions."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lossguard.cli.gate import (
    SERVICE,
    FormatOption,
    KeyOption,
    RunOption,
    ServiceOption,
    gate_errors,
    known_format,
    names,
    seconds_of,
    usage,
)

AdminOption = Annotated[
    str | None, typer.Option("--token", envvar="LOSSGUARD_TOKEN", show_default=False, help="With the scope admin.")
]
ListOption = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="LOSSGUARD_TOKEN", show_default=False, help="With the scope read; admin to change something."
    ),
]
OfProjectOption = Annotated[
    str | None, typer.Option("--project", help="Accept verdicts about runs of this project only.")
]
OfPolicyOption = Annotated[str | None, typer.Option("--policy", help="Accept verdicts by this policy only.")]
AuthorOption = Annotated[str, typer.Option("--author", help="Who answers for it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in a sentence.")]


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A published version's folder.")],
    key: KeyOption = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Compare digest and verdict only.")] = False,
    project: OfProjectOption = None,
    policy: OfPolicyOption = None,
    format: FormatOption = "table",
) -> None:
    """Check offline that what lies in a folder is what a signed verdict passed; exit code 0 if it is, 1 if not.

    Example: lossguard gate verify serving/ranker/7 --key gate.pub
    """
    from lossguard.gate.signature import read_keys
    from lossguard.gate.verify import verify as verify_folder

    known_format(format)
    with gate_errors(format):
        if not key and not unsigned:
            usage("--key", "name the service's public key, or --unsigned to trust whoever wrote the folder", format)
        answer = verify_folder(folder, read_keys(key or []), project=project, policy=policy)
        if format == "json":
            typer.echo(json.dumps(answer.document, indent=1, ensure_ascii=False))
        else:
            verdict = answer.verdict
            typer.echo(
                f"{folder} is what verdict {verdict.id} passed: {verdict.project}/{verdict.run} step {verdict.step}"
            )


def guard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that TensorFlow Serving watches.")],
    key: KeyOption = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Compare digest and verdict only.")] = False,
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="Look again and again: 10s, 1m.")] = "0s",
    project: OfProjectOption = None,
    policy: OfPolicyOption = None,
    dry: Annotated[bool, typer.Option("--dry", help="Say what would be moved away, and move nothing.")] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-file", metavar="FILE.prom", help="Write findings for node_exporter's textfile collector."
        ),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option("--metrics-listen", metavar="HOST:PORT", help="Show findings to Prometheus there; with --every."),
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Move every version without a valid verdict out of the serving folder's sight; exit code 1 if there was one.

    Example: lossguard gate guard serving/ranker --key gate.pub --every 10s
    """
    from lossguard.gate.errors import GateError
    from lossguard.gate.exposition import listen, page, write_page
    from lossguard.gate.guard import Guard
    from lossguard.gate.signature import read_keys

    known_format(format)
    pause = seconds_of(every, "--every", format)
    with gate_errors(format):
        if not key and not unsigned:
            usage("--key", "name the service's public key, or --unsigned to trust whoever wrote the folder", format)
        if not folder.is_dir():
            usage("DIR", f"{folder} is not a folder: name the one that TensorFlow Serving watches", format)
        if metrics_file is not None and (metrics_file.suffix != ".prom" or not metrics_file.parent.is_dir()):
            usage("--metrics-file", "write a name that ends with .prom, in the folder that node_exporter reads", format)
        if metrics_listen is not None and not pause:
            usage("--metrics-listen", "goes with --every: a look that ends cannot be scraped", format)
        watch = Guard(folder, read_keys(key or []), dry, project, policy)
        with listen(*_address(metrics_listen, format)) if metrics_listen else nullcontext() as listener:
            if listener is not None:
                typer.echo(f"Prometheus finds this guard at {listener.url}", err=True)
            while True:
                findings = watch.look()
                bad = [finding for finding in findings if not finding.good]
                if format == "json" and (bad or not pause):
                    typer.echo(json.dumps({"versions": [finding.to_json() for finding in findings]}))
                for finding in bad:
                    where = f". Moved to {finding.moved_to}" if finding.moved_to else ""
                    typer.echo(f"version {finding.version}: {finding.reason}{where}", err=True)
                if format == "table" and not pause and not bad:
                    typer.echo(f"{folder}: {len(findings)} versions, each with a verdict that holds")
                sys.stdout.flush()
                if listener is not None:
                    listener.text = page(folder, findings)
                if metrics_file is not None:
                    try:
                        write_page(metrics_file, page(folder, findings))
                    except OSError as error:
                        # A full disk must not end the watch; node_exporter tells how old the file is.
                        typer.echo(f"--metrics-file: {metrics_file} cannot be written ({error.strerror})", err=True)
                if not pause:
                    raise typer.Exit(1 if bad else 0)
                time.sleep(pause)
                try:
                    watch.trust(read_keys(key or []))
                except GateError as error:
                    # Whoever writes the file anew must not end the watch; the keys of before count until it is there.
                    typer.echo(f"--key: {error}", err=True)


def _address(text: str, format: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        usage("--metrics-listen", f"write HOST:PORT, for example 127.0.0.1:9114, got {text!r}", format)
    return host, int(port)


def keys(
    rotate: Annotated[bool, typer.Option("--rotate", help="Sign with a new key from now on.")] = False,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="ID", help="Trust this key no more.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the trusted keys there.")] = None,
    author: AuthorOption = "",
    reason: ReasonOption = "",
    service: ServiceOption = SERVICE,
    token: ListOption = None,
    format: FormatOption = "table",
) -> None:
    """List the service's public keys; rotate or revoke one; write those that are trusted to a file.

    Example: lossguard gate keys --out gate.pub
    """
    from lossguard.gate.client import call, open_client

    known_format(format)
    if rotate and revoke:
        usage("--revoke", "goes without --rotate: do one after the other", format)
    if (rotate or revoke) and not (author and reason):
        option = "--rotate" if rotate else "--revoke"
        usage(option, "goes with --author and --reason: who does it and why stands in the audit log", format)
    said = {"author": author, "reason": reason}
    with gate_errors(format), open_client(service, token=token) as client:
        if rotate:
            call(client, "POST", "/v1/keys/rotate", json=said)
        if revoke:
            call(client, "POST", f"/v1/keys/{quote(revoke, safe='')}/revoke", json=said)
        found: list[dict[str, Any]] = call(client, "GET", "/v1/keys")["keys"]
        if out is not None:
            trusted = [
                f"{one['public']}  # {one['key']} {one['state']}\n" for one in found if one["state"] != "revoked"
            ]
            try:
                out.write_text("".join(trusted), "utf-8")
            except OSError as error:
                usage("--out", f"{out} cannot be written ({error.strerror}): name a file in a folder of yours", format)
        if format == "json":
            typer.echo(json.dumps({"keys": found}, indent=1))
        else:
            for one in found:
                typer.echo(f"{one['key']}  {one['state']:8} {one['public']}")


def waive(
    run: RunOption,
    checks: Annotated[list[str], typer.Option("--check", metavar="NAME", help="A check, as the verdict names it.")],
    author: AuthorOption,
    reason: ReasonOption,
    lasts: Annotated[str, typer.Option("--for", metavar="TIME", help="For how long: 90m, 24h.")] = "24h",
    step: Annotated[int | None, typer.Option("--step", min=1, help="For the export of this step only.")] = None,
    service: ServiceOption = SERVICE,
    token: AdminOption = None,
    format: FormatOption = "table",
) -> None:
    """Let named checks of a run's exports pass for a while; every verdict that uses it says so.

    Example: lossguard gate waive --run ranker --check quiet_period --author ann --reason "reviewed the curve by hand"
    """
    from lossguard.gate.client import call, open_client

    known_format(format)
    project, name = names(run, format)
    body = {
        "project": project, "run": name, "checks": list(checks), "author": author, "reason": reason,
        "seconds": seconds_of(lasts, "--for", format), "first_step": step, "last_step": step,
    }  # fmt: skip
    with gate_errors(format), open_client(service, token=token) as client:
        waiver = call(client, "POST", "/v1/waivers", json=body)
        typer.echo(json.dumps(waiver, indent=1) if format == "json" else f"waiver {waiver['id']} counts from now on")


def policy(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Rules as YAML, TOML or JSON; without it, list policies.")
    ] = None,
    author: AuthorOption = "",
    service: ServiceOption = SERVICE,
    token: ListOption = None,
    format: FormatOption = "table",
) -> None:
    """Store a new version of a policy from a file, or list the policies that there are.

    Example: lossguard gate policy nightly.yaml --author ann
    """
    from lossguard.gate.client import call, open_client
    from lossguard.gate.policy_file import read_rules

    known_format(format)
    if file is not None and not author:
        usage("--author", "say who answers for the policy; it stands in the audit log", format)
    with gate_errors(format), open_client(service, token=token) as client:
        if file is None:
            found: list[dict[str, Any]] = call(client, "GET", "/v1/policies")["policies"]
        else:
            found = [call(client, "POST", "/v1/policies", json={"rules": read_rules(file), "author": author})]
        if format == "json":
            typer.echo(json.dumps({"policies": found}, indent=1))
        else:
            for one in found:
                typer.echo(f"{one['name']} {one['version']}  {one['description']}".rstrip())


def audit(
    project: Annotated[str | None, typer.Option("--project", help="Only of this project.")] = None,
    service: ServiceOption = SERVICE,
    token: AdminOption = None,
    format: Annotated[str, typer.Option("--format", help="jsonl, json or table.")] = "jsonl",
) -> None:
    """Print the audit log: verdicts, waivers, keys, policies; by default one JSON document a line.

    Example: lossguard gate audit > audit.jsonl
    """
    from rich.console import Console

    from lossguard.cli.gate_words import show_entries
    from lossguard.gate.client import entries, open_client

    known_format(format, ("jsonl", "json", "table"))
    with gate_errors(format), open_client(service, token=token) as client:
        found = entries(client, project)
        if format == "jsonl":
            for entry in found:
                typer.echo(json.dumps(entry, ensure_ascii=False))
        elif format == "json":
            typer.echo(json.dumps({"entries": list(found)}, indent=1, ensure_ascii=False))
        else:
            show_entries(Console(), found)


COMMANDS = (verify, guard, keys, policy, waive, audit)
