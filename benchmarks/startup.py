"""Compare the time of `--help` with that of `import click`, in paired runs.

Usage: python benchmarks/startup.py [RUNS] > benchmarks/startup.csv
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe

IMPORT_CLICK = [sys.executable, "-c", "import click"]
COMMANDS = ("ffd-run", "ffd-bench", "ffd-doctor", "ffd-train", "ffd-eval", "ffd-export")


def seconds(command: list[str]) -> float:
    """Measure the wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print a CSV: command, its median, the import's median, and the median of the ratios."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(f"# {describe()}; {runs} pairs")
    print("command,seconds,import_click_seconds,ratio")
    for name in COMMANDS:
        command = [str(Path(sys.executable).with_name(name)), "--help"]
        seconds(command)
        pairs = [(seconds(command), seconds(IMPORT_CLICK)) for _ in range(runs)]
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name} --help,{ours:.3f},{bare:.3f},{ratio:.2f}")


if __name__ == "__main__":
    main()
