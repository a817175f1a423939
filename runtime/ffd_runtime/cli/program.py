"""The programs of `ffd-run`: still images, streams, a cluster.

A program declares its options as the fields of a frozen dataclass. An option of the command belongs
to the programs whose dataclass has a field of its name, and is refused by the others. A new program
is one module with a `PROGRAM` and one line in `PROGRAMS`. `run.py` declares all options, so that
`--help` loads no program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from .options import is_given

if TYPE_CHECKING:
    from ..core.classifier import Classifier
    from ..image.faces import FaceDetector

# `choose_program` tries them in this order; the last one accepts everything. They are named, not
# imported, because the runtime does not depend on the cluster.
PROGRAMS = (
    "ffd_cluster.cluster_program",
    "ffd_runtime.cli.run_streams",
    "ffd_runtime.cli.run_images",
)

Options = TypeVar("Options", bound="RunOptions")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every program; see `ffd-run --help`.

    Raises:
        click.UsageError: the options contradict each other.
    """

    model: str | None
    backend: str
    device: str
    output: str | None
    faces: bool | None
    face_model: str | None
    min_face: int | None

    def __post_init__(self) -> None:
        if self.min_face and not self.detect_faces:
            raise click.UsageError("--min-face needs --faces")

    @property
    def detect_faces(self) -> bool:
        """Whether faces are detected."""
        return bool(self.faces)

    def open_detector(self) -> FaceDetector | None:
        """Open the face detector; None if faces are not detected."""
        if not self.detect_faces:
            return None
        from pathlib import Path

        from ..image.face_model import find_face_model
        from ..image.faces import FaceDetector

        model = find_face_model(Path(self.face_model) if self.face_model else None)
        return FaceDetector(model, **({} if self.min_face is None else {"min_side": self.min_face}))

    def open_classifier(self, workers: int | None, **limits: int) -> Classifier:
        """Load the model; the arguments are those of `Classifier.open`."""
        from ..image.preprocess import warming_up

        with warming_up():
            from ..core.classifier import Classifier

            return Classifier.open(
                self.model,
                backend=self.backend,
                device=self.device,
                workers=workers,
                detector=self.open_detector(),
                **limits,
            )


@dataclass(frozen=True)
class Program(Generic[Options]):
    """One of the programs behind the command.

    Attributes:
        inputs: what it classifies, as error messages name it.
        options: a dataclass with a field for each option.
        accepts: whether the program is to run, given the sources and all values of the command;
            raises `click.UsageError` if no program runs with them.
        run: classify the sources.
        flag: the option that selects the program, if there is one.
    """

    inputs: str
    options: type[Options]
    accepts: Callable[[Sequence[str], Mapping[str, Any]], bool]
    run: Callable[[Sequence[str], Options], None]
    flag: str | None = None

    @property
    def names(self) -> frozenset[str]:
        """The names of the program's options, as click passes them."""
        return frozenset(field.name for field in fields(self.options))

    def start(self, sources: Sequence[str], values: Mapping[str, Any]) -> None:
        """Check the options and run.

        Raises:
            click.UsageError: an option does not apply, or some contradict each other.
        """
        _refuse_foreign_options(self)
        options = self.options(**{name: values[name] for name in self.names})
        # A variable of the environment may name the detector for other runs.
        if is_given("face_model") and not options.detect_faces:
            raise click.UsageError("--face-model needs --faces")
        if not sources:
            raise click.UsageError("Missing argument 'SOURCE...'.")
        self.run(sources, options)


def load_programs() -> tuple[Program[Any], ...]:
    """Return the programs, in the order in which `choose_program` tries them."""
    return tuple(import_module(name).PROGRAM for name in PROGRAMS)


def choose_program(sources: Sequence[str], values: Mapping[str, Any]) -> Program[Any]:
    """Return the first program that accepts the sources and options."""
    return next(program for program in load_programs() if program.accepts(sources, values))


def _refuse_foreign_options(program: Program[Any]) -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        others = [other for other in load_programs() if name in other.names]
        if not is_given(name) or name in program.names or not others:
            continue
        option = "/".join([*parameter.opts, *parameter.secondary_opts])
        if program.flag:
            raise click.UsageError(f"{option} cannot be combined with {program.flag}")
        if all(other.flag for other in others):
            raise click.UsageError(f"{option} needs {others[0].flag}")
        inputs = " and ".join(other.inputs for other in others if not other.flag)
        raise click.UsageError(f"{option} applies only to {inputs}")
