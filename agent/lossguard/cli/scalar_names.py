"""`--scalar NAME=COLUMN`: which column of a saved run holds a scalar, for every command that reads saved runs."""

from typing import Annotated

import typer

ScalarNames = Annotated[
    list[str] | None,
    typer.Option("--scalar", help="NAME=COLUMN: which column holds a scalar, e.g. loss=train/objective."),
]


def columns_of(items: list[str] | None) -> dict[str, str]:
    """Scalar name to column.

    Raises:
        typer.BadParameter: an item that is not NAME=COLUMN.
    """
    given = {}
    for item in items or []:
        name, equals, column = item.partition("=")
        if not (name and equals and column):
            raise typer.BadParameter(f"{item!r}; write NAME=COLUMN", param_hint="--scalar")
        given[name] = column
    return given
