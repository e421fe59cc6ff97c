"""A page of the documentation that a message or a docstring sends people to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(
    {
        (str(path.relative_to(ROOT)), page)
        for room in ("agent", "service", "dashboards", "benchmarks")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".html", ".js", ".yml", ".yaml", ".json")
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
)


def test_messages_name_pages_at_all() -> None:
    assert len(NAMED) >= 5


@pytest.mark.parametrize(("source", "page"), NAMED)
def test_a_page_that_is_named_is_there(source: str, page: str) -> None:
    assert (ROOT / page).is_file(), f"{source} names {page}"
