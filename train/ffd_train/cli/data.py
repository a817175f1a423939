"""ffd-data: audit and pack data sets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from ffd_runtime.cli.command import say
from ffd_runtime.cli.options import version_option

# The module of each command; its function has the command's name.
COMMANDS = {
    "audit": "ffd_train.cli.data_audit",
    "prepare": "ffd_train.cli.data_prepare",
}


class LazyGroup(click.Group):
    """A group that imports commands on demand, and prints usage errors on one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            say(f"{info_name}: error: {error.format_message()} ({info_name} --help)")
            raise click.exceptions.Exit(2) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            say(f"{ctx.info_name}: error: {error.format_message()} ({ctx.info_name} --help)")
            raise click.exceptions.Exit(2) from None


@click.group(cls=LazyGroup)
@version_option()
def main() -> None:
    """Audit a data set of generated faces and photographs, or pack it for training."""
