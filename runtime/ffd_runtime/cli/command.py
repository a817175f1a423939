"""The base class of all commands: grouped help, one-line errors, exit codes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from ..core.errors import FfdError, OutputError
from ..core.text import printable

# The modules that each extra installs, besides those of `BackendSpec.extras`.
EXTRAS = {
    "train": "torch torchvision timm lightning torchmetrics sklearn scipy safetensors matplotlib "
    "tensorboard",
    "export": "onnx onnxscript",
    "parquet": "pyarrow",
    "ray": "ray",
    "web": "starlette uvicorn prometheus_client",
}


# Options that name what a command writes, and that take one path.
WRITTEN = frozenset({"output", "report", "annotate", "record", "html"})


class Terminated(BaseException):
    """A signal asks the process to end. As after Ctrl-C, open files and devices are closed.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class GroupedOption(click.Option):
    """An option that `--help` lists under the title `group`."""

    def __init__(self, *args: Any, group: str | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def option(*names: str, group: str | None, **attributes: Any) -> Callable[[Any], Any]:
    """Declare an option with a group, as `click.option` does without one."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


class Command(click.Command):
    """A click command whose errors are one line each.

    Exit codes: that of an `FfdError`; 2 for wrong usage; 130 for Ctrl-C; 143 for SIGTERM; 1 for a
    closed pipe, without a message. Any other exception is a defect of ffd: its message names
    `--debug`, which shows the traceback of every error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-v", "--verbose"], is_flag=True, help="Print more details."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by group; those without a group come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", None) or "", []).append(record)
        ungrouped = groups.pop("", [])
        groups["Other options" if groups else "Options"] = ungrouped
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            end_usage(f"{parent.command_path} {info_name}" if parent else info_name, error)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, order = self.make_parser(ctx).parse_args(list(args))
        for parameter in self.params:
            if not isinstance(parameter.type, click.Path):
                continue
            # An unset variable of a script gives an empty path, and `Path("")` is the current
            # folder.
            values = given.get(parameter.name or "")
            if "" in (values if isinstance(values, list | tuple) else [values]):
                raise click.BadParameter("the path is empty", ctx, parameter)
            # click would ignore all but the last of several files to write.
            if parameter.name in WRITTEN and order.count(parameter) > 1:
                raise click.BadParameter("it is given twice, and takes one path", ctx, parameter)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        ctx.ensure_object(dict)["verbose"] = ctx.params.pop("verbose")
        try:
            _prepare_streams()
            with _raising_on_signals(), _printing_logs(), _raising_interruptions():
                super().invoke(ctx)
            _leave(ctx, 0)
        except click.exceptions.Exit as ended:
            _leave(ctx, ended.exit_code)
        except click.Abort:
            raise
        except click.UsageError as error:
            end_usage(ctx.command_path, error)
        except KeyboardInterrupt:
            say(f"{ctx.command_path}: interrupted")
            _leave(ctx, 130)
        except Terminated as end:
            say(f"{ctx.command_path}: terminated")
            _leave(ctx, 128 + end.signal)
        except BrokenPipeError:
            # The reader of stdout has closed it. Without this, Python fails to flush it at exit.
            sys.stdout = None
            ctx.exit(1)
        except Exception as error:
            if debug:
                raise
            code = error.exit_code if isinstance(error, FfdError) else 1
            say(f"{ctx.command_path}: error: {_explain(error)}")
            _leave(ctx, code)


def _leave(ctx: click.Context, code: int) -> None:
    """Exit after all files and devices are closed."""
    if any(thread.name.startswith("ffd-") for thread in threading.enumerate()):
        # A thread still runs in a decoder or waits for a server. If it returned while the
        # interpreter shuts down, it would abort the process with another exit code.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    ctx.exit(code)


@contextmanager
def _raising_on_signals() -> Iterator[None]:
    """Raise `Terminated` in the main thread at the first SIGTERM; let a second one kill.

    The same for the signal of a closed terminal, unless it is ignored, as by nohup.
    """
    # Imported here, like logging below, so that --help does not wait for it.
    import signal

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    closed = getattr(signal, "SIGHUP", None) or getattr(signal, "SIGBREAK", None)
    numbers = [number for number in (signal.SIGTERM, closed) if number]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is not signal.SIG_IGN]

    def terminate(number: int, _: object) -> NoReturn:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
        raise Terminated(number)

    for number in handled:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


@contextmanager
def _raising_interruptions() -> Iterator[None]:
    """Raise the Ctrl-C or the signal that a module in native code made an ImportError of."""
    try:
        yield
    except Exception as error:
        failed = error if isinstance(error, ImportError) else error.__context__
        cause = failed.__cause__ if isinstance(failed, ImportError) else None
        if isinstance(cause, KeyboardInterrupt | Terminated):
            raise cause from None
        raise


@contextmanager
def _printing_logs() -> Iterator[None]:
    """Print the log messages of ffd's packages to stderr."""
    import logging

    class PrintHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    handler = PrintHandler()
    loggers = [logging.getLogger(name) for name in ("ffd_runtime", "ffd_cluster")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)


def _prepare_streams() -> None:
    """Escape characters that the encoding of stdout or stderr lacks, instead of failing."""
    if sys.stdout is None:
        raise OutputError("standard output is closed: redirect it to a file or to /dev/null")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def end_usage(name: str | None, error: click.UsageError) -> NoReturn:
    """End a command whose usage is wrong, with one line on stderr and exit code 2."""
    say(f"{name}: error: {error.format_message()} ({name} --help)")
    raise click.exceptions.Exit(2)


def _explain(error: Exception) -> str:
    """Return one sentence: what failed, and what to do."""
    if isinstance(error, FfdError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        from ..core.install_hint import install_hint
        from ..model.backend_registry import find_extra

        module = error.name.split(".")[0]
        extras = (extra for extra, modules in EXTRAS.items() if module in modules.split())
        if extra := next(extras, find_extra(module)):
            return f"{error.name} is not installed: {install_hint(extra)}"
    if isinstance(error, ImportError):
        return f"a library cannot be loaded ({error}): install the library, or reinstall ffd-edge"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)"


def say(message: str) -> None:
    """Print one line to stderr, escaped for a terminal; do nothing if the terminal is closed."""
    with suppress(OSError):
        click.echo(printable(" ".join(line.strip() for line in message.splitlines())), err=True)


def say_more(text: str) -> None:
    """Print our own text to stderr, unescaped, if the running command has -v."""
    if wants_more():
        click.echo(text, err=True)


def wants_more() -> bool:
    """Return whether the running command has -v."""
    return bool(click.get_current_context().ensure_object(dict).get("verbose"))
