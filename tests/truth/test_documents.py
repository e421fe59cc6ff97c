"""README and docs name only what exists: files, commands, options, classes."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)|(?:src|srcset)=\"([^\"]+)\"")
COMMAND = re.compile(r"lossguard (?:demo|doctor|gate|replay|sidecar|backtest|compare)\b[^\n`|&;]*")


def _named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def commands() -> Any:
    from lossguard.cli.main import app

    return typer.main.get_command(app)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_links_lead_somewhere(document: Path) -> None:
    for found in LINK.finditer(document.read_text()):
        target = found[1] or found[3]
        if target and "://" not in target:
            assert (document.parent / target).exists(), f"{_named(document)} points to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_commands_and_their_options_exist(document: Path, commands: Any) -> None:
    text = document.read_text().replace("\\\n", " ")
    for found in COMMAND.finditer(text):
        words = shlex.split(found[0].split("  #")[0].replace("'", "").replace('"', ""), comments=True)[1:]
        command = commands
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):
            continue  # prose about a group of commands
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                name = word.split("=")[0].rstrip(".,;:)")
                assert name in options | {"--help"}, f"{_named(document)}: `{found[0]}` has no option {name}"


def test_the_readme_lists_every_guide() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for guide in sorted((REPOSITORY / "docs").glob("*.md")):
        assert f"docs/{guide.name}" in readme, f"README does not mention docs/{guide.name}"


def test_the_readmes_python_names_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    names = set(re.findall(r"lossguard\.keras\.(\w+)", readme))
    assert {"Watch", "Clippy"} <= names
    source = (REPOSITORY / "agent" / "lossguard" / "keras" / "__init__.py").read_text()
    for name in names:
        assert re.search(rf"\b{name}\b", source), name
    import lossguard

    assert callable(lossguard.Run)
    assert importlib.util.find_spec("lossguard.keras") is not None
