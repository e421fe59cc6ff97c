"""The guide's tables say what the code says."""

import re
from pathlib import Path

import typer

from lossguard.cli.main import app
from lossguard.drops import MEANING
from lossguard.sidecar.status import HELP

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "datapath.md").read_text()


def rows(marker: str) -> list[tuple[str, ...]]:
    table = GUIDE.split(f"<!-- {marker}:", 1)[1].split("<!-- end of", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip("` ") for cell in line) for line in lines]


def test_the_reasons() -> None:
    assert rows("drops") == list(MEANING.items())


def test_the_metrics() -> None:
    assert rows("metrics") == [(name, kind, text) for name, (kind, text) in HELP.items()]


def test_the_options_of_the_sidecar() -> None:
    command = typer.main.get_command(app).commands["sidecar"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", GUIDE, re.MULTILINE)) == options - {"--help"}
