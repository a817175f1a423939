"""Run commands in this process, which saves their start-up time."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result


def invoke(command: click.Command, name: str, *arguments: object) -> Result:
    """Run a command under a name such as `ffd-run`."""
    with pytest.MonkeyPatch.context() as patch:
        # If a thread still runs, a command ends its process, which would end pytest.
        patch.setattr("ffd_runtime.cli.command._leave", lambda context, code: context.exit(code))
        return CliRunner().invoke(command, list(map(str, arguments)), prog_name=name)
