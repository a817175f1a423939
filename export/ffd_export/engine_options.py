"""Options of the engine builder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Batch size of ffd-run.
DEFAULT_OPT_BATCH = 16


@dataclass(frozen=True)
class EngineOptions:
    """How TensorRT builds an engine.

    Attributes:
        max_batch: largest batch that the engine accepts; the smallest is 1.
        opt_batch: batch that the engine is optimised for; None for 16, or `max_batch` if smaller.
        workspace: GPU memory for the scratch space of a layer, in MiB; None for all.
        optimization_level: 0 (shortest build) to 5 (fastest engine); None for TensorRT's default.
        timing_cache: folder that keeps kernel timings between builds; None to keep none.
        version_compatible: whether later versions of TensorRT can run the engine.
        lean_runtime: whether a version-compatible engine contains the lean runtime.
        hardware_compatibility: one of `engine_manifest.COMPATIBILITIES`.
        compute_capabilities: GPUs to build for without having them, for TensorRT for RTX.
    """

    max_batch: int = 32
    opt_batch: int | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    lean_runtime: bool = True
    hardware_compatibility: str = "none"
    compute_capabilities: tuple[str, ...] = ()

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch."""
        return 1, min(self.opt_batch or DEFAULT_OPT_BATCH, self.max_batch), self.max_batch

    def arguments(self) -> list[str]:
        """Return the options of ffd-export that build such an engine, without the GPUs."""
        values: dict[str, object] = {
            "--max-batch": self.max_batch,
            "--opt-batch": self.opt_batch,
            "--workspace": self.workspace,
            "--optimization-level": self.optimization_level,
        }
        if self.hardware_compatibility != "none":
            values["--hardware-compatibility"] = self.hardware_compatibility
        flags = ["--version-compatible"] if self.version_compatible else []
        if self.version_compatible and not self.lean_runtime:
            flags.append("--exclude-lean-runtime")
        pairs = [(name, str(value)) for name, value in values.items() if value is not None]
        return [*(text for pair in pairs for text in pair), *flags]
