"""What docs/engines.md claims about GPUs, and the check of each claim."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

PASS, FAIL, SKIP = "pass", "fail", "skipped"


class Unmet(Exception):  # noqa: N818 - a claim that does not hold is no error of the kit
    """The claim does not hold; the message has what was seen."""


class Unchecked(Exception):  # noqa: N818 - nor is a library that is not installed
    """The claim cannot be checked here; the message has the reason."""


@dataclass(frozen=True)
class Setting:
    """What checks are run with.

    Attributes:
        folder: for files that checks make; theirs alone.
        device: as for `open_backend`, `cuda:N`; tests give `cpu` where a check can run there.
        index: of the GPU.
        seconds: of one measurement of speed.
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
        part: claims of one part are checked in one process of their own.
        check: `module.function` in this package; the function returns what it saw.
    """

    name: str
    text: str
    part: str
    check: str

    def load(self) -> Check:
        """The check itself; its module imports what it needs."""
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
        "`--device auto` takes the CPU for INT8 and says so",
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
        "buckets, parts and lanes of an engine mix no images up",
        "engine",
        "stand_in.mix_batches",
    ),
    Claim(
        "engine-graphs",
        "each bucket of an engine is captured once, then launched",
        "engine",
        "stand_in.capture",
    ),
    Claim(
        "engine-threads",
        "capturing survives another thread's use of CUDA",
        "engine",
        "stand_in.disturb",
    ),
    Claim(
        "engine-waits",
        "waiting for an engine leaves Python to other threads",
        "engine",
        "stand_in.wait",
    ),
    Claim(
        "engine-close",
        "closing an engine in another thread frees its memory",
        "engine",
        "stand_in.close",
    ),
    Claim(
        "tensorrt-build",
        "TensorRT builds an FP16 engine",
        "tensorrt",
        "engines.build",
    ),
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
    """What came of a claim.

    Attributes:
        claim: its name.
        outcome: `pass`, `fail` or `skipped`.
        detail: what was seen, or why nothing was, on one line.
        seconds: that it took.
    """

    claim: str
    outcome: str
    detail: str
    seconds: float = 0.0


def check_claims(claims: tuple[Claim, ...], setting: Setting) -> Iterator[Outcome]:
    """Check claims one after the other; one that fails costs the others nothing."""
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
    except Exception as error:  # whatever a library raises, the claim does not hold
        return FAIL, f"{type(error).__name__}: {error}"


def require(holds: bool, seen: str) -> str:
    """What was seen, where the claim holds.

    Raises:
        Unmet: it does not.
    """
    if not holds:
        raise Unmet(seen)
    return seen
