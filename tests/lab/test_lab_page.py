"""The committed page says what the committed results say, and nobody else says otherwise."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from lab.report import page, svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
LAB = re.compile(r"\b[Tt]he lab\b|lab\.md")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_page_is_what_its_results_render_to() -> None:
    results = json.loads((DOCS / page.RESULTS).read_text())
    assert (DOCS / page.PAGE).read_text() == page.render(results)
    assert not results["about"]["quick"], "docs/lab.md must not be a smoke run's"


def test_numbers_that_documents_quote_from_the_lab_stand_on_its_page() -> None:
    known = set(NUMBER.findall((DOCS / page.PAGE).read_text()))
    checked = 0
    for document in [DOCS.parent / "README.md", *DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")]:
        if document == DOCS / page.PAGE:
            continue
        # Decisions also tell what was measured elsewhere on the lab's models: there a sentence must name the page.
        about = re.compile(r"lab\.md") if document.parent.name == "decisions" else LAB
        for paragraph in re.split(r"\n\s*\n|\n\|", document.read_text()):
            for sentence in re.split(r"(?<=[.:])\s", paragraph):
                if about.search(sentence):
                    quoted = re.sub(r"`[^`]*`|\]\([^)]*\)|decision \d+|Table \d", "", sentence)
                    assert set(NUMBER.findall(quoted)) <= known, f"{document.name}: {sentence}"
                    checked += len(NUMBER.findall(quoted))
    assert checked


def test_every_option_of_the_lab_that_documents_name_exists() -> None:
    import typer.main

    from lab.cli import app

    options = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    for document in [DOCS.parent / "README.md", DOCS.parent / "Makefile", *DOCS.rglob("*.md")]:
        for command in re.findall(r"(?:make lab|lossguard-lab)[^`\n#]*", document.read_text()):
            named = set(re.findall(r"--[a-z]+", command))
            assert named <= options, f"{document.name}: {command}"


def test_a_thinned_line_keeps_its_spike() -> None:
    values = [1.0] * 5000
    values[1234] = 1e6
    points = svg.thinned(range(5000), values)
    assert len(points) <= svg.POINTS
    assert [1234.0, 1e6] in points


def test_the_same_points_give_the_same_picture() -> None:
    panels = [svg.Panel("loss", [svg.Line("a", [[1, 2.0], [2, "Infinity"], [3, 1.0]])], log=True, marks=[(2, "b")])]
    assert svg.rows(panels, "step") == svg.rows(panels, "step")
