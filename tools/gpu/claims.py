"""The claims of docs/engines.md about GPUs, and the check of each claim."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

PASS, FAIL, SKIP = "pass", "fail", "skipped"


class Unmet(Exception):  # noqa: N818 - a failed claim is not an error of these tools
    """The claim fails; the message contains what was observed."""


class Unchecked(Exception):  # noqa: N818 - a missing library is not an error, either
    """The claim cannot be checked here; the message contains the reason."""


@dataclass(frozen=True)
class Setting:
    """Settings of the checks.

    Attributes:
        folder: for files of the checks only.
        device: as for `open_backend`, `cuda:N`; tests use `cpu` for checks that run there.
        index: of the GPU.
        seconds: duration of a measurement of speed.
    """

    folder: Path
    device: str = "cuda:0"
    index: int = 0
    seconds: float = 2.0


Check = Callable[[Setting], str]


@dataclass(frozen=True)
class Claim:
    """A claim of docs/engines.md.

    Attributes:
        name: in the report and in the page's table.
        text: as in the page's table.
        part: the claims of a part are checked in one process.
        check: `module.function` in this package; the function returns what it observed.
    """

    name: str
    text: str
    part: str
    check: str

    def load(self) -> Check:
        """Import and return the check."""
        module, function = self.check.split(".")
        check: Check = getattr(import_module(f"{__package__}.{module}"), function)
        return check


CLAIMS = (
    Claim(
        "cuda-starts",
        "FP32 and FP16 run on CUDA with `--device auto`",
        "onnxruntime",
        "provider.start",
    ),
    Claim(
        "cuda-placement",
        "no node of an FP32 or FP16 model runs on the CPU",
        "onnxruntime",
        "provider.place",
    ),
    Claim(
        "cuda-fp32",
        "FP32 gives the CPU's probabilities to within 1e-4 on CUDA",
        "onnxruntime",
        "provider.match_fp32",
    ),
    Claim(
        "cuda-fp16",
        "FP16 gives the FP32 model's probabilities to within 1e-2 on CUDA",
        "onnxruntime",
        "provider.match_fp16",
    ),
    Claim(
        "cuda-tensor-cores",
        "FP16 is faster than FP32 on CUDA",
        "onnxruntime",
        "provider.compare_speeds",
    ),
    Claim(
        "cuda-batches",
        "on CUDA, batches of 16 and 15 in turn are as fast as batches of 16",
        "onnxruntime",
        "provider.vary_batches",
    ),
    Claim(
        "cuda-rows",
        "on CUDA, every image gets its own outputs, whatever the batches and threads",
        "onnxruntime",
        "provider.mix_batches",
    ),
    Claim(
        "cuda-int8",
        "`--device auto` selects the CPU for INT8 and reports it",
        "onnxruntime",
        "provider.refuse_int8",
    ),
    Claim(
        "cuda-memory",
        "any thread can free page-locked memory",
        "onnxruntime",
        "provider.free_elsewhere",
    ),
    Claim(
        "engine-rows",
        "every image gets its own outputs from an engine, whatever the batches and threads",
        "engine",
        "stand_in.mix_batches",
    ),
    Claim(
        "engine-graphs",
        "each bucket of an engine is captured as a CUDA graph once, then launched",
        "engine",
        "stand_in.capture",
    ),
    Claim(
        "engine-threads",
        "CUDA graphs can be captured while another thread uses CUDA",
        "engine",
        "stand_in.disturb",
    ),
    Claim(
        "engine-waits",
        "waiting for an engine releases Python's global interpreter lock",
        "engine",
        "stand_in.wait",
    ),
    Claim(
        "engine-close",
        "closing an engine in another thread frees its memory",
        "engine",
        "stand_in.close",
    ),
    Claim("tensorrt-build", "TensorRT builds an FP16 engine", "tensorrt", "engines.build"),
    Claim(
        "tensorrt-match",
        "the engine gives the ONNX's probabilities to within 1e-2",
        "tensorrt",
        "engines.match",
    ),
    Claim(
        "rtx-build",
        "TensorRT for RTX builds an FP16 engine for this GPU",
        "rtx",
        "engines.build_rtx",
    ),
    Claim(
        "rtx-match",
        "that engine gives the ONNX's probabilities to within 1e-2",
        "rtx",
        "engines.match_rtx",
    ),
    Claim(
        "lean-match",
        "the lean runtime runs a version-compatible engine",
        "lean",
        "engines.match_lean",
    ),
)
PARTS = tuple(dict.fromkeys(claim.part for claim in CLAIMS))


@dataclass(frozen=True)
class Outcome:
    """Result of a check.

    Attributes:
        claim: name of the claim.
        outcome: `pass`, `fail` or `skipped`.
        detail: what was observed, or why the claim was skipped, on one line.
        seconds: duration.
    """

    claim: str
    outcome: str
    detail: str
    seconds: float = 0.0


def check_claims(claims: tuple[Claim, ...], setting: Setting) -> Iterator[Outcome]:
    """Check claims one after the other. A failure does not affect the others."""
    for claim in claims:
        begin = time.perf_counter()
        outcome, detail = _check(claim, setting)
        seconds = round(time.perf_counter() - begin, 1)
        yield Outcome(claim.name, outcome, " ".join(detail.split()), seconds)


def _check(claim: Claim, setting: Setting) -> tuple[str, str]:
    try:
        return PASS, claim.load()(setting)
    except Unmet as reason:
        return FAIL, str(reason)
    except Unchecked as reason:
        return SKIP, str(reason)
    except ModuleNotFoundError as error:
        return SKIP, f"{error.name} is not installed"
    except Exception as error:  # whatever a library raises, the claim fails
        return FAIL, f"{type(error).__name__}: {error}"


def require(holds: bool, observed: str) -> str:
    """Return what was observed.

    Raises:
        Unmet: the claim fails.
    """
    if not holds:
        raise Unmet(observed)
    return observed
