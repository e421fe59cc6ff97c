"""docs/service.md says what the code says. `python tests/service/test_service_docs.py` writes the tables anew."""

import re
import sys
from pathlib import Path

from lossguard_service.metrics import names
from lossguard_service.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "service.md"


def settings_table() -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines)


def metrics_table() -> str:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in names.ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def section(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name}:[^\n]*-->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
    assert found, f"docs/service.md has lost its {name}"
    return found[1].strip()


def test_the_settings_table_is_the_settings_object() -> None:
    assert section(PAGE.read_text(), "settings") == settings_table()


def test_the_metrics_table_is_the_list_of_names() -> None:
    assert section(PAGE.read_text(), "metrics") == metrics_table()


def test_the_routes_table_is_the_app(tmp_path: Path) -> None:
    from services import Clock, run, service

    async def story() -> set[str]:
        async with service(f"sqlite:///{tmp_path / 'x.db'}", Clock()) as one:
            paths = (await one.get("/openapi.json"))["paths"]
            return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}

    listed = re.findall(r"^\| `([A-Z]+ [^`]+)` \|", section(PAGE.read_text(), "routes"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == run(story())


def write() -> None:
    text = PAGE.read_text()
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        text = re.sub(
            rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- end of {name} -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(write())
