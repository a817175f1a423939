"""What every ffd command shares: options, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from .. import __version__
from ..errors import FfdError


class Command(click.Command):
    """A click command whose errors are one line each.

    An `FfdError` ends with its exit code, Ctrl-C with 130, a closed pipe quietly; anything else is
    a defect of ours and says how to see the traceback. `--debug` lets every error through.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-v", "--verbose"], is_flag=True, help="Say more about what happens."),
            click.Option(["--debug"], is_flag=True, help="Show a traceback where something fails."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        ctx.ensure_object(dict)["verbose"] = ctx.params.pop("verbose")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(f"\n{ctx.info_name}: interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader has gone: nothing is left to say, and Python must not try at exit either.
            sys.stdout = None
            ctx.exit(1)
        except FfdError as error:
            if debug:
                raise
            fail(ctx, str(error), error.exit_code)
        except Exception as error:
            if debug:
                raise
            kind = type(error).__name__
            fail(ctx, f"unexpected {kind}: {error} (--debug shows the traceback)", 1)


def fail(ctx: click.Context, message: str, code: int) -> None:
    """End a command with one line on stderr."""
    click.echo(f"{ctx.info_name}: error: {' '.join(message.split())}", err=True)
    ctx.exit(code)


def say(message: str) -> None:
    """One line on stderr."""
    click.echo(message, err=True)


def verbose() -> bool:
    """Whether -v was given to the running command."""
    return bool(click.get_current_context().ensure_object(dict).get("verbose"))


def version_option() -> Callable[[Any], Any]:
    """`--version`."""
    return click.version_option(__version__, message="%(prog)s %(version)s (ffd-edge)")


def format_option(default: str) -> Callable[[Any], Any]:
    """`--json` or `--table`, None where neither is given.

    Args:
        default: what the help says of that case.
    """
    return click.option(
        "--json/--table",
        "as_json",
        default=None,
        help=f"JSON or a table on stdout. Default: a table on a terminal, else JSON{default}.",
    )


def wants_table(as_json: bool | None) -> bool:
    """Whether a person reads stdout: asked for, or a terminal."""
    return sys.stdout.isatty() if as_json is None else not as_json
