"""Build TensorRT engines from an ONNX with `tensorrt` 10 and 11 or with `tensorrt_rtx`.

The caller passes the module. This module handles the differences between the two and between
versions. The network is strongly typed, so that types come from the ONNX: TensorRT 11 supports
nothing else, and in TensorRT 10 no FP16 layer can silently become FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ffd_runtime.core.errors import BackendError, EngineError, ModelError
from ffd_runtime.core.interruptible import run_interruptible
from ffd_runtime.model.backends.tensorrt_log import remembering_logger
from ffd_runtime.model.devices import describe_gpu
from ffd_runtime.model.engine_manifest import COMPATIBILITIES, list_rtx_gpus

from .build_monitor import make_monitor
from .engine_layers import inspect_engine, network_layer_types
from .export_options import ExportOptions
from .layers import LayerTypes
from .timing_cache import reuse_timings

if TYPE_CHECKING:
    from rich.progress import Progress

MIB = 1 << 20


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's bytes and facts. `EngineManifest` describes the facts."""

    content: bytes
    builder_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    layers: LayerTypes
    built_layers: Mapping[str, int] | None


def build_engine(
    trt: Any,
    onnx: bytes,
    size: int,
    options: ExportOptions,
    bar: Progress | None = None,
    require: Callable[[LayerTypes], None] = lambda layers: None,
) -> BuiltEngine:
    """Build an engine.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        onnx: an ONNX of the graph contract.
        size: side of its input, in pixels.
        options: how to build.
        bar: shows the phases.
        require: raises an error if the parsed network's types are wrong, before the build starts.

    Raises:
        BackendError: TensorRT does not start; the message quotes it.
        ModelError: it cannot parse or build the network; the message quotes it.
        KeyboardInterrupt: Ctrl-C was pressed; the build is cancelled.
    """
    monitor = make_monitor(trt, bar)
    return run_interruptible(
        lambda: _build(trt, onnx, size, options, monitor, require),
        "ffd-build",
        cancel=monitor.cancel,
    )


def _build(
    trt: Any,
    onnx: bytes,
    size: int,
    options: ExportOptions,
    monitor: Any,
    require: Callable[[LayerTypes], None],
) -> BuiltEngine:
    logger = remembering_logger(trt)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind11 raises TypeError if TensorRT returns no builder
        raise BackendError(f"TensorRT does not start: {error}{logger.quote()}") from None
    # The parser owns the weights until the engine is built.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        faults = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise ModelError(f"TensorRT cannot parse the ONNX: {'; '.join(faults[:3])}")
    layers = network_layer_types(trt, network)
    require(layers)
    gpu = None if options.compute_capability else describe_gpu(0)
    targets = options.compute_capability or ((gpu.compute_capability,) if gpu else ())
    config = _configure(trt, builder, options, targets, logger)
    config.progress_monitor = monitor
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((count, size, size, 3) for count in options.batch))
    config.add_optimization_profile(profile)
    with reuse_timings(trt, config, options.timing_cache, gpu):
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:
            raise ModelError(f"TensorRT failed: {error}") from error
        if plan is None:
            raise ModelError(f"TensorRT cannot build the engine{logger.quote()}")
    content = bytes(plan)
    del parser
    built = inspect_engine(trt, content, logger, options.version_compatible) if gpu else None
    name = gpu.name if gpu else None
    return BuiltEngine(content, trt.__version__, name, targets, layers, built)


def find_capability(trt: Any, text: str) -> Any:
    """Return the member of `ComputeCapability` for a text such as `8.9`.

    Raises:
        EngineError: TensorRT for RTX does not support it.
    """
    supported = list_rtx_gpus(trt)
    if text not in supported:
        raise EngineError(
            f"compute capability {text}: TensorRT for RTX {trt.__version__} builds for "
            f"{', '.join(supported)}; for another GPU, use --engine tensorrt on its machine"
        )
    return trt.ComputeCapability.__members__[f"SM{text.replace('.', '')}"]


def _configure(
    trt: Any, builder: Any, options: ExportOptions, targets: tuple[str, ...], logger: Any
) -> Any:
    """Return the builder's configuration."""
    config = builder.create_builder_config()
    # TF32, TensorRT's default, would run an FP32 layer with a mantissa of 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The engine inspector then reports the types of all layers; the kernels stay the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.exclude_lean_runtime:
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility
        member = getattr(trt.HardwareCompatibilityLevel, level.upper(), None)
        if member is None:
            raise EngineError(
                f"--hardware-compatibility {level}: TensorRT {trt.__version__} does not support "
                f"it; use one of {', '.join(COMPATIBILITIES)}"
            )
        config.hardware_compatibility_level = member
    if trt.__name__ == "tensorrt_rtx":
        # The default list of TensorRT for RTX may lack this machine's GPU.
        config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(targets):
            if not config.set_compute_capability(find_capability(trt, capability), index):
                raise EngineError(
                    f"TensorRT for RTX rejects compute capability {capability}{logger.quote()}"
                )
    return config
