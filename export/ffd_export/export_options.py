"""Options of an export, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

AUTO = ("auto",)
# Methods of calibration; the calibration `auto` compares them.
METHODS = ("percentile", "entropy")
# Batch size of ffd-run.
DEFAULT_OPT_BATCH = 16


@dataclass(frozen=True)
class ExportOptions:
    """The options of `ffd-export`, under its names.

    `ffd-export --help` describes each. None means the default that it names.

    Raises:
        click.UsageError: options exclude each other.
    """

    model: Path | None = None
    fp16: bool = False
    int8: bool = False
    target: str | None = None
    calibrate: Path | None = None
    calibration_images: int = 512
    calibration: str = "auto"
    keep: tuple[str, ...] = ()
    engine: str = "auto"
    max_batch: int = 32
    opt_batch: int | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: str = "none"
    compute_capability: tuple[str, ...] = ()
    timing_cache: Path | None = None
    verify: str | None = None
    triton: Path | None = None
    output: Path | None = None
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        for message in (*self._precision_faults(), *self._engine_faults()):
            raise click.UsageError(message)

    def _precision_faults(self) -> Iterator[str]:
        if self.fp16 and self.int8:
            yield "--fp16 and --int8 are two exports: run ffd-export twice"
        for option, value in (
            ("--target", self.target),
            ("--calibrate", self.calibrate),
            ("--calibration", self.calibration != ExportOptions.calibration),
            ("--calibration-images", self.calibration_images != ExportOptions.calibration_images),
        ):
            if value and not self.int8:
                yield f"{option} is for --int8"
        if self.keep and not (self.fp16 or self.int8):
            yield "--keep is for --fp16 and --int8"
        if self.fp16 and self.keep == AUTO and not self.verifies:
            yield "--keep auto needs images to measure FP16 on: --verify DIR"

    def _engine_faults(self) -> Iterator[str]:
        if self.exclude_lean_runtime and not self.version_compatible:
            yield "--exclude-lean-runtime is for --version-compatible"
        if self.target == "cpu" and self.names_engine:
            yield "--target cpu is INT8 for onnxruntime, which TensorRT does not support"
        if self.compute_capability and self.engine != "rtx":
            yield (
                "--compute-capability is for --engine rtx: TensorRT builds for the GPU that it "
                "runs on, or see --hardware-compatibility"
            )
        if not self.names_engine and (self.engine == "none" or not self.for_tensorrt):
            for option, is_given in (
                ("--opt-batch", self.opt_batch is not None),
                ("--workspace", self.workspace is not None),
                ("--optimization-level", self.optimization_level is not None),
                ("--version-compatible", self.version_compatible),
                ("--hardware-compatibility", self.hardware_compatibility != "none"),
                ("--timing-cache", self.timing_cache is not None),
            ):
                if is_given:
                    yield f"{option} is for an engine (--engine)"
        if self.timing_cache and self.engine == "rtx":
            yield "--timing-cache is for --engine tensorrt: TensorRT for RTX does not time kernels"
        if self.triton and self.engine == "rtx":
            yield "Triton does not serve engines of TensorRT for RTX"
        if self.opt_batch and self.opt_batch > self.max_batch:
            yield "--opt-batch is larger than --max-batch"

    @property
    def verifies(self) -> bool:
        """Whether the export is verified on images."""
        return self.verify != "none"

    @property
    def names_engine(self) -> bool:
        """Whether an engine is required."""
        return self.engine in ("tensorrt", "rtx")

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""
        return "fp16" if self.fp16 else "int8" if self.int8 else "fp32"

    @property
    def int8_target(self) -> str:
        """`cpu` or `tensorrt`."""
        return self.target or ("tensorrt" if self.names_engine else "cpu")

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT can build a faster engine from the converted model."""
        return self.fp16 or (self.int8 and self.int8_target == "tensorrt")

    @property
    def suffix(self) -> str:
        """The suffix of the exported model's file name."""
        if self.int8 and self.int8_target == "tensorrt":
            return ".int8-tensorrt.onnx"
        return f".{self.precision}.onnx" if self.fp16 or self.int8 else ".onnx"

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch of an engine."""
        return 1, min(self.opt_batch or DEFAULT_OPT_BATCH, self.max_batch), self.max_batch

    def engine_arguments(self) -> list[str]:
        """Return the arguments of `ffd-export` that build such an engine, without the GPUs."""
        arguments = ["--max-batch", str(self.max_batch)]
        for option, value in (
            ("--opt-batch", self.opt_batch),
            ("--workspace", self.workspace),
            ("--optimization-level", self.optimization_level),
        ):
            if value is not None:
                arguments += [option, str(value)]
        if self.hardware_compatibility != "none":
            arguments += ["--hardware-compatibility", self.hardware_compatibility]
        if self.version_compatible:
            arguments.append("--version-compatible")
        if self.exclude_lean_runtime:
            arguments.append("--exclude-lean-runtime")
        return arguments
