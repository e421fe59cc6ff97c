"""Composes the `lossguard` command.

Each command is a module beside this one. Commands import what they need when they run, so that `lossguard --help`
answers at once and the sidecar's host needs neither TensorFlow nor the service's packages.
"""

import typer

from lossguard import __version__
from lossguard.cli import gate, gate_trust, operate
from lossguard.cli.backtest import backtest
from lossguard.cli.compare import compare
from lossguard.cli.demo import demo
from lossguard.cli.doctor import doctor
from lossguard.cli.replay import replay
from lossguard.cli.serve import serve
from lossguard.cli.sidecar import sidecar

app = typer.Typer(
    name="lossguard",
    help="Catch training divergence while it is small, and keep broken models out of serving.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lossguard {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options that stand before the command."""


# The service's own parser reads the arguments of this one, --help included.
app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.add_typer(operate.token)
app.add_typer(operate.database)
app.command()(sidecar)
app.command()(replay)
app.command()(backtest)
app.command()(compare)
app.command()(demo)
app.command()(doctor)
for _trust in gate_trust.COMMANDS:
    gate.app.command()(_trust)
app.add_typer(gate.app)


def main() -> None:
    """The console script's entry point."""
    app()
