"""Runbooks as pages: the Markdown files of `docs/runbooks`, of which the subset is read that they use.

That subset: `#` and `##` headings, paragraphs, numbered lists, and `code`. Whatever else a file holds is text. An
installed service has the files in its wheel, a checkout in `docs/`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

FOR_KIND: Final = {
    "full_divergence": "LossguardFullDivergence",
    "micro_divergence": "LossguardRepeatedMicroDivergence",
    "nonfinite": "LossguardNonfinite",
    "no_update": "LossguardNoUpdate",
    "stalled": "LossguardStalled",
}
"""The runbook of each kind of incident that has one."""


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph or a list; texts are split at their backquotes, every second piece being code."""

    kind: Literal["title", "heading", "paragraph", "list"]
    texts: tuple[tuple[str, ...], ...]


@cache
def runbook(name: str) -> tuple[Block, ...] | None:
    """The runbook of an alert, or None."""
    if not re.fullmatch("[A-Za-z]{1,80}", name):
        return None
    for folder in (files("lossguard_service") / "runbooks", Path(__file__).parents[3] / "docs" / "runbooks"):
        page = folder / f"{name}.md"
        if page.is_file():
            return tuple(parse(page.read_text("utf-8")))
    return None


def parse(text: str) -> Iterator[Block]:
    """The blocks of a file.

    >>> list(parse("## Do\\n1. Look at `loss`."))[1].texts
    (('Look at ', 'loss', '.'),)
    """
    for part in re.split(r"\n\s*\n|(?<=\S)\n(?=1\. )|(?m:^(##? .*)$)", text):
        if part is None or not part.strip():
            continue
        part = part.strip()
        if part.startswith("## "):
            yield Block("heading", (_split(part[3:]),))
        elif part.startswith("# "):
            yield Block("title", (_split(part[2:].partition(": ")[2] or part[2:]),))
        elif part.startswith("1. "):
            yield Block("list", tuple(_split(item) for item in re.split(r"(?:^|\n)\d+\. ", part) if item))
        else:
            yield Block("paragraph", (_split(part.replace("\n", " ")),))


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("`"))
