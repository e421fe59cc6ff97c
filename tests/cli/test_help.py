"""Help that teaches, one document for programs, completion in the shell; wrong use is a sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lossguard.cli.main import app

ROOT = typer.main.get_command(app)
OPERATE = [("token", name) for name in ("create", "list", "revoke")] + [
    ("db", name) for name in ("upgrade", "backup", "restore")
]
TAUGHT = [("sidecar",), ("demo",), ("doctor",), *OPERATE]


def commands(at: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    # By what it holds: Typer may carry a Click of its own.
    if hasattr(at, "commands"):
        for name, child in at.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path, at


ALL = dict(commands())


@pytest.mark.parametrize("path", sorted(ALL), ids=" ".join)
def test_every_command_says_what_it_is_for(path: tuple[str, ...]) -> None:
    first = (ALL[path].help or "").strip().splitlines()[0]
    assert len(first) > 20, path
    assert first[0].isupper(), path


@pytest.mark.parametrize("path", TAUGHT, ids=" ".join)
def test_help_shows_an_example_that_parses_and_a_word_about_each_option(path: tuple[str, ...]) -> None:
    command = ALL[path]
    examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("Example: ")]
    assert examples
    for example in examples:
        words = example.split("lossguard ", 1)[1].rstrip(")").split()
        assert tuple(words[: len(path)]) == path
        known = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known
    silent = [
        one.name for one in command.params if not getattr(one, "help", None) and not getattr(one, "hidden", False)
    ]
    assert silent == []


@pytest.mark.parametrize("path", TAUGHT, ids=" ".join)
def test_a_format_that_does_not_exist_is_wrong_use(path: tuple[str, ...], tmp_path: Path) -> None:
    needed = {
        ("sidecar",): [str(tmp_path), "--service", "http://127.0.0.1:9"],
        ("token", "create"): ["--name", "x", "--scope", "read"],
        ("token", "revoke"): ["x"],
        ("db", "backup"): ["x"],
        ("db", "restore"): ["x"],
    }
    done = CliRunner().invoke(app, [*path, *needed.get(path, []), "--format", "xml"])
    assert done.exit_code == 2, done.output
    assert "xml" in done.output
    assert "json" in done.output


@pytest.mark.parametrize("path", OPERATE, ids=" ".join)
def test_what_the_command_line_offers_the_service_understands(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossguard.cli import operate
    from lossguard_service import admin

    handed: list[list[str]] = []
    monkeypatch.setattr(operate, "hand_over", lambda module, arguments: handed.append(arguments))
    values = {"scope": "read", "days": "1.5"}
    arguments = []
    for one in ALL[path].params:
        value = values.get(one.name or "", f"-{one.name}")
        if isinstance(one, typer.core.TyperArgument):
            arguments += ["--", value]
        elif one.name not in ("help", "format"):
            arguments.insert(0, f"{one.opts[0]}={value}")
    done = CliRunner().invoke(app, [*path, "--format=json", *arguments])
    assert done.exit_code == 0, done.output
    ((_program, *words),) = handed
    understood = vars(admin._parser().parse_args(words))
    assert understood.pop("format") == "json"
    assert understood.pop("run").__name__ in {"create", "show", "revoke", "upgrade", "back_up", "restore"}
    given = {one.name: values.get(one.name or "", f"-{one.name}") for one in ALL[path].params}
    for name, value in understood.items():
        wanted = given[name]
        assert value == {"scope": [wanted], "days": 1.5}.get(name, type(value)(wanted)), name


def test_a_token_is_made_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from lossguard.cli.main import main; main()", "token", "create"]
    command += ["--name", "ops", "--scope", "admin", "--scope", "read", "--format", "json"]
    done = subprocess.run(
        command,
        env=os.environ | {"LOSSGUARD_DATABASE": f"sqlite:///{tmp_path / 'x.db'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["token"]["scopes"] == ["admin", "read"]
    assert made["secret"] not in json.dumps(made["token"])


def test_the_shell_completes_commands_and_options() -> None:
    script = "from lossguard.cli.main import main; main()"

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv[0] = 'lossguard'; {script}"],
            env=os.environ
            | {
                "_LOSSGUARD_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert "token" in complete("lossguard to")
    assert {"create", "list", "revoke"} <= set(complete("lossguard token "))
    assert "--database" in complete("lossguard token create --d")
    assert complete("lossguard token create --scope i") == ["ingest"]
