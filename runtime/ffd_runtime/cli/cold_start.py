"""Measure the time from the start of a process to its first result."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.cores import count_cores
from ..core.errors import BackendError
from ..inputs import Item
from ..model.backend_registry import find_readers
from ..model.backends import EMBEDDED, find_model
from ..model.backends.onnxruntime import choose_providers

# ffd-run in a new process, which prints its peak memory to stderr.
FRESH = """
from ffd_runtime.cli.run import main
try:
    main()
finally:
    import sys
    from ffd_runtime.core.machine import peak_memory
    print(peak_memory(), file=sys.stderr)
"""
# The minimum for any runtime with the same libraries, with the session options of ffd.
BARE = """
import json, sys
import cv2, numpy, onnxruntime
path, size, threads, providers = sys.argv[1], *map(json.loads, sys.argv[2:])
if len(providers) > 1:
    sys.stdout, out = sys.stderr, sys.stdout
    onnxruntime.preload_dlls()
    sys.stdout = out
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = threads
providers = [tuple(provider) if isinstance(provider, list) else provider for provider in providers]
session = onnxruntime.InferenceSession(path, options, providers=providers)
session.run(None, {"image": numpy.zeros((1, size, size, 3), numpy.uint8)})
print("ran", flush=True)
"""


def bare_session(model: str | None, device: str, size: int) -> list[str]:
    """Return `BARE` and its arguments; see `measure_cold_start`."""
    path = find_model(model, device)
    providers = json.dumps(choose_providers(path, device))
    return [BARE, str(path), str(size), str(count_cores()), providers]


def measure_cold_start(
    model: str | None, name: str, device: str, size: int, image: Item, pairs: int = 5
) -> dict[str, Any]:
    """Measure new processes of `ffd-run` in turns with processes of a bare session.

    `pairs` pairs are measured after one that is discarded. The other arguments are those of
    `open_backend`, the side of the network's input in pixels, and the image to classify.

    Raises:
        BackendError: a process fails.
        InputError: the image cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="ffd-") as folder:
        # A member of an archive has no path.
        path = Path(folder) / "image"
        path.write_bytes(image.read())
        return _measure(model, name, device, size, path, pairs)


def _measure(
    model: str | None, name: str, device: str, size: int, path: Path, pairs: int
) -> dict[str, Any]:
    options = ["--backend", name, "--device", device, "--batch", "1", "--json"]
    options += ["--model", model] if model else []
    fresh = [FRESH, *options, "--", str(path)]
    # Only onnxruntime has a bare session.
    suffix = Path(model or EMBEDDED).suffix
    is_bare = (find_readers(suffix)[0] if name == "auto" else name) == "onnxruntime"
    bare = bare_session(model, device, size) if is_bare else []
    fresh_times: list[float] = []
    bare_times: list[float] = []
    memory: list[int] = []
    for turn in range(pairs + 1):
        seconds, stderr = _time_first_line(fresh)
        if turn:
            fresh_times.append(seconds)
            memory += [int(word) for word in stderr.split()[-1:] if word.isdecimal()]
        if is_bare:
            seconds, _ = _time_first_line(bare)
            bare_times += [seconds] if turn else []
    ratios = [one / other for one, other in zip(fresh_times, bare_times, strict=False)]
    return {
        "backend": name,
        "pairs": pairs,
        "first_verdict_ms": round(1000 * statistics.median(fresh_times), 1),
        "bare_ms": round(1000 * statistics.median(bare_times), 1) if bare_times else None,
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "peak_memory_bytes": max(memory, default=None),
    }


def _time_first_line(script: Sequence[str]) -> tuple[float, str]:
    """Return the seconds until a new Python prints its first line, and all of its stderr."""
    code, *arguments = script
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as stderr:
        begin = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own scripts
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        with process:
            try:
                assert process.stdout
                line = process.stdout.readline()
                seconds = time.perf_counter() - begin
                process.stdout.read()
            except BaseException:
                process.kill()
                raise
        stderr.seek(0)
        text = stderr.read()
    if process.returncode or not line:
        # The last line is the peak memory.
        lines = [line for line in text.splitlines() if not line.isdecimal()]
        last = lines[-1] if lines else f"exit code {process.returncode}"
        raise BackendError(f"a process of --cold-start printed no result: {last}")
    return seconds, text
