"""Column types that keep what SQL drivers would lose.

`Number` brings NaN through SQLite, whose driver turns it into NULL; `Words` brings any text from outside into a
database that takes neither NUL nor lone surrogates; `Document` is JSON with non-finite numbers by name.
"""

import json
import math
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from lossguard.wire.numbers import to_json

# Made once: `json.dumps` with options makes a new one at each call, and a chunk has three documents.
_to_json: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _Real(sa.types.UserDefinedType[Any]):
    """A REAL column that hands values to SQLite's driver as they are; SQLAlchemy's own would call `float` on them."""

    cache_ok = True

    def get_col_spec(self, **_options: Any) -> str:
        return "REAL"


class Number(TypeDecorator[float]):
    """A float64 with NaN and the infinities."""

    impl = sa.Double
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """SQLite keeps the text "NaN" in a REAL column as text, which is what makes the round trip work."""
        return dialect.type_descriptor(_Real() if dialect.name == "sqlite" else sa.Double())

    def process_bind_param(self, value: float | None, dialect: Dialect) -> Any:
        """NaN as text for SQLite."""
        if value is None:
            return None
        value = float(value)
        return "NaN" if dialect.name == "sqlite" and math.isnan(value) else value

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """The inverse."""
        return None if value is None else float(value)


class Words(TypeDecorator[str]):
    """Text from outside; what UTF-8 or PostgreSQL cannot hold becomes U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace NUL and lone surrogates."""
        return None if value is None else clean(value)


class Document(TypeDecorator[Any]):
    """A JSON value; NaN and the infinities are the strings of `lossguard.wire.numbers`."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Compact JSON, ASCII only (which also escapes NUL and lone surrogates)."""
        if value is None:
            return None
        try:
            return _to_json(value)
        except ValueError:
            return _to_json(to_json(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The inverse, non-finite numbers still by name."""
        return None if value is None else json.loads(value)


def clean(text: str) -> str:
    r"""The text with NUL and lone surrogates replaced.

    >>> clean("a\x00b")
    'a�b'
    """
    return text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
