"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from .command import option

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


class PathType(click.Path):
    """A `Path` option. pathlib is imported with a value, so that --help does not wait for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from pathlib import Path

        return Path(os.fsdecode(super().convert(value, param, ctx)))


def is_given(name: str) -> bool:
    """Return whether an option of the running command is on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def version_option() -> Callable[[Any], Any]:
    """Declare `--version`."""
    return click.version_option(__version__, message="%(prog)s %(version)s (ffd-edge)")


def device_option(group: str | None = None) -> Callable[[Any], Any]:
    """Declare `--device`; an invalid value is wrong usage."""

    def check(_: click.Context, __: click.Parameter, value: str) -> str:
        if value == "auto":
            return value
        from ..core.errors import DeviceError
        from ..model.devices import parse_device

        try:
            parse_device(value)
        except DeviceError as error:
            raise click.UsageError(str(error)) from None
        return value

    return option(
        "--device",
        group=group,
        default="auto",
        show_default=True,
        callback=check,
        metavar="auto|cpu|cuda[:N]",
        help="Device for the model. If a named device does not start, the command fails.",
    )


def backend_option(group: str | None = None) -> Callable[[Any], Any]:
    """Declare `--backend`."""
    # Imported here, because commands without this option need no registry for --help.
    from ..model.backend_registry import BACKENDS

    return option(
        "--backend",
        group=group,
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        show_default=True,
        help="Inference library. If a named backend does not start, the command fails.",
    )


def format_option(default: str, group: str | None = None) -> Callable[[Any], Any]:
    """Declare `--json` and `--table`; without them the value is None, which `default` explains."""
    return option(
        "--json/--table",
        "as_json",
        group=group,
        default=None,
        help=f"JSON or a table on stdout. Default: a table on a terminal, else JSON{default}.",
    )


def wants_table(as_json: bool | None) -> bool:
    """Return whether to print a table: on request, or by default on a terminal."""
    return sys.stdout.isatty() if as_json is None else not as_json


def open_console(as_json: bool | None) -> Console | None:
    """Return the console of stdout for a table, else that of stderr if it is a terminal.

    A table and a progress bar must share a console, because two would overwrite each other.
    """
    table = wants_table(as_json)
    if not (table or sys.stderr.isatty()):
        return None
    from rich.console import Console

    return Console(stderr=not table, highlight=False)
