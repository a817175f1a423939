"""What every ffd command shares: options, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from .. import __version__
from ..core.errors import FfdError, OutputError
from ..core.text import printable

# Modules of the extras, for who has installed the runtime alone.
EXTRAS = {
    "train": "torch torchvision timm lightning torchmetrics sklearn scipy safetensors matplotlib "
    "PIL tensorboard",
    "export": "onnx onnxscript",
    "tensorrt": "tensorrt cuda",
    "rtx": "tensorrt_rtx",
    "openvino": "openvino",
    "parquet": "pyarrow",
    "ray": "ray",
    "web": "starlette uvicorn",
}


class Terminated(BaseException):
    """SIGTERM came: like Ctrl-C, everything open is closed on the way out."""


class Command(click.Command):
    """A click command whose errors are one line each.

    An `FfdError` ends with its exit code, wrong usage with 2, Ctrl-C with 130, SIGTERM with 143, a
    closed pipe quietly; anything else is a defect of ours and says how to see the traceback.
    `--debug` lets every error through.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-v", "--verbose"], is_flag=True, help="Say more about what happens."),
            click.Option(["--debug"], is_flag=True, help="Show a traceback where something fails."),
        ]

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _end_usage(f"{parent.command_path} {info_name}" if parent else info_name, error)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        ctx.ensure_object(dict)["verbose"] = ctx.params.pop("verbose")
        try:
            _prepare_streams()
            with _raising_on_sigterm(), _saying_what_is_logged():
                super().invoke(ctx)
            _leave(ctx, 0)
        except click.exceptions.Exit as ended:
            _leave(ctx, ended.exit_code)
        except click.Abort:
            raise
        except click.UsageError as error:
            _end_usage(ctx.command_path, error)
        except KeyboardInterrupt:
            say(f"{ctx.command_path}: interrupted")
            _leave(ctx, 130)
        except Terminated:
            say(f"{ctx.command_path}: terminated")
            _leave(ctx, 143)
        except BrokenPipeError:
            # The reader has gone: nothing is left to say, and Python must not try at exit either.
            sys.stdout = None
            ctx.exit(1)
        except Exception as error:
            if debug:
                raise
            code = error.exit_code if isinstance(error, FfdError) else 1
            say(f"{ctx.command_path}: error: {_explain(error)}")
            _leave(ctx, code)


def _leave(ctx: click.Context, code: int) -> None:
    """Exit; everything open is closed by now."""
    if any(thread.name.startswith("ffd-") for thread in threading.enumerate()):
        # A worker is still in a decoder, or a stream's thread waits for a server. Coming back into
        # an interpreter that ends, it would abort the process, and the exit code would be another.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    ctx.exit(code)


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread, once; a second one ends the process."""

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _saying_what_is_logged() -> Iterator[None]:
    """What the runtime logs for a person is said, as everything else is."""
    # --help must not wait for it.
    import logging

    class Say(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("ffd_runtime")
    handler = Say()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _prepare_streams() -> None:
    """Names that a stream's encoding lacks are escaped instead of ending the run."""
    if sys.stdout is None:
        raise OutputError("standard output is closed: redirect it to a file or to /dev/null")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def _end_usage(name: str | None, error: click.UsageError) -> NoReturn:
    say(f"{name}: error: {error.format_message()} ({name} --help)")
    raise click.exceptions.Exit(2)


def _explain(error: Exception) -> str:
    """What went wrong and what to do, in one sentence."""
    if isinstance(error, FfdError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        for extra, modules in EXTRAS.items():
            if error.name.split(".")[0] in modules.split():
                return f"{error.name} is not installed: pip install 'ffd-edge[{extra}]'"
    if isinstance(error, ImportError):
        return f"a library cannot be loaded ({error}): install what it names, or reinstall ffd-edge"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)"


def say(message: str) -> None:
    """One line on stderr, safe to show; lost if the terminal is gone."""
    with suppress(OSError):
        click.echo(printable(" ".join(line.strip() for line in message.splitlines())), err=True)


def say_more(text: str) -> None:
    """Text of our own on stderr, as it is, if -v was given to the running command."""
    if wants_more():
        click.echo(text, err=True)


def wants_more() -> bool:
    """Whether -v was given to the running command."""
    return bool(click.get_current_context().ensure_object(dict).get("verbose"))


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which --help shows them."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def version_option() -> Callable[[Any], Any]:
    """`--version`."""
    return click.version_option(__version__, message="%(prog)s %(version)s (ffd-edge)")


def device_option() -> Callable[[Any], Any]:
    """`--device`, its form checked."""

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

    return click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=check,
        metavar="auto|cpu|cuda[:N]",
        help="A device asked for by name is used or is an error.",
    )


def backend_option() -> Callable[[Any], Any]:
    """`--backend`."""
    return click.option(
        "--backend",
        # Those of `backends.BACKENDS`, which --help must not wait for.
        type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt"]),
        default="auto",
        show_default=True,
        help="A backend asked for by name is used or is an error.",
    )


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
