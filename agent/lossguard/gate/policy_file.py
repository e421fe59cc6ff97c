"""Reads a policy's rules from a file: YAML, TOML or JSON, by its ending.

Guarantees. Only the form is looked at here; whether the rules can be is the service's answer, which names the field.
YAML needs PyYAML, the others nothing.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from lossguard.gate.errors import GateError
from lossguard.wire.numbers import to_json


class NotAPolicy(GateError):
    """The file holds no rules; nothing was sent."""


def read_rules(path: Path) -> dict[str, Any]:
    """The rules in a file, by name.

    Raises:
        NotAPolicy: there are none; the sentence says why.
    """
    try:
        text = path.read_text("utf-8")
        match path.suffix:
            case ".json":
                rules = json.loads(text)
            case ".toml":
                rules = tomllib.loads(text)
            case ".yaml" | ".yml":
                rules = _yaml(text, path)
            case _:
                raise NotAPolicy(f"{path}: name it .yaml, .toml or .json, so that it is known how to read it")
    except OSError as error:
        raise NotAPolicy(f"{path} cannot be read ({error.strerror}): write the policy's rules there") from None
    except ValueError as error:
        raise NotAPolicy(f"{path} cannot be read as {path.suffix[1:]} ({error}): correct it there") from None
    if not isinstance(rules, dict) or not all(isinstance(name, str) for name in rules):
        raise NotAPolicy(f"{path} holds no rules: write name and the rules that differ from the default")
    return dict(to_json(rules))


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise NotAPolicy(f"{path} needs PyYAML here: pip install pyyaml, or write it as .toml or .json") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = getattr(error, "problem", None) or str(error)
        raise NotAPolicy(f"{path} is not YAML ({where}{problem}): correct it there") from None
