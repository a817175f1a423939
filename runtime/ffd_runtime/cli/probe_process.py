"""Run a probe in a new process, which may crash or hang."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress

from ..model.backend_registry import Facts

# A small board needs some time for its first start.
PROBE_TIMEOUT_S = 120.0
# `loaded`: imported, but there is no GPU to start it on. `absent`: not installed. `refused`: the
# device is unsupported. The first four are not faults.
OUTCOMES = ("started", "loaded", "absent", "refused", "failed", "crashed", "timeout")
HARMLESS = OUTCOMES[:4]
# A prefix that separates the result from what libraries print.
RESULT_PREFIX = "ffd-doctor result "

ADVICE = {
    r"lib(GL|EGL|gthread|glib|SM|Xext)[-.\w]*: cannot open": (
        "install the libraries of OpenCV's windows (on Debian: apt install libgl1 libglib2.0-0), "
        "or replace opencv-python with opencv-python-headless"
    ),
    r"numpy\.?_?core\.multiarray|_ARRAY_API|compiled using NumPy|numpy\.dtype size changed": (
        "a package was compiled for another version of NumPy: upgrade OpenCV and onnxruntime, or "
        "pip install 'numpy<2'"
    ),
}


def run_probe(name: str, *arguments: str, seconds: float = PROBE_TIMEOUT_S) -> Facts:
    """Run one of `probes.PROBES` in a new process.

    Returns:
        `outcome`, one of `OUTCOMES`; the probe's facts if it started or was loaded, otherwise
        `reason` and `do`; and `said`, the warnings that were logged.
    """
    code = "from ffd_runtime.cli.probes import main; main()"
    command = [sys.executable, "-P", "-c", code, name, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, with our own arguments
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"no result within {seconds:g} s, so it was stopped"
        return {"outcome": "timeout", "reason": reason, "do": None, "said": []}
    return _read_result(done)


def _read_result(done: subprocess.CompletedProcess[str]) -> Facts:
    facts: Facts = {"said": []}
    for line in done.stdout.splitlines():
        # A crash may truncate the line.
        with suppress(ValueError):
            if line.startswith(RESULT_PREFIX):
                facts = json.loads(line.removeprefix(RESULT_PREFIX))
    if done.returncode or "outcome" not in facts:
        last = done.stderr.strip().splitlines()[-1:]
        reason = ": ".join([f"the process {_describe_exit(done.returncode)}", *last])
        facts = {"outcome": "crashed", "reason": reason, "said": facts["said"], "do": None}
    if facts["outcome"] in ("failed", "crashed"):
        facts["do"] = find_advice(f"{facts['reason']}\n{done.stderr}")
    return facts


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def find_advice(text: str) -> str | None:
    """Return advice for a known failure; None for an unknown one."""
    return next((do for pattern, do in ADVICE.items() if re.search(pattern, text)), None)
