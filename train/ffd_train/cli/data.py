"""ffd-data: audit and pack data sets."""

from __future__ import annotations

from typing import Any

import click

from ffd_runtime.cli.command import end_usage
from ffd_runtime.cli.options import version_option

from .data_audit import audit
from .data_prepare import prepare


class Group(click.Group):
    """A group of commands that prints usage errors on one line."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            end_usage(info_name, error)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            end_usage(ctx.info_name, error)


@click.group(cls=Group)
@version_option()
def main() -> None:
    """Audit a data set of generated faces and photographs, or pack it for training."""


main.add_command(audit)
main.add_command(prepare)
