"""ffd-doctor: report what this machine has, and which backends start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from ..core.text import printable
from .command import Command
from .options import format_option, open_console, version_option, wants_table

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """\b
Examples:
  ffd-doctor
  ffd-doctor --json | jq .warnings

\b
Exit codes:
  0 the embedded model runs   1 it does not run   2 wrong usage
"""

Line = tuple[str, str, str]
STYLES = {"started": "green", "loaded": "green", "absent": "dim", "refused": "yellow"}
BAD = "red"


@click.command(cls=Command, epilog=EPILOG)
@format_option("")
@version_option()
def main(as_json: bool | None) -> None:
    """Report what this machine has, which backends start on it, and what prevents the others.

    Each backend opens the embedded model and classifies an image in its own process, so a crash
    affects nothing else. The command changes nothing and sends nothing.
    """
    from .diagnosis import examine

    console = open_console(as_json)
    with console.status("") if console and console.is_terminal else nullcontext() as status:
        report = examine(lambda step: status.update(f"{step} ...") if status else None)
    if console and wants_table(as_json):
        _print(console, report)
    else:
        click.echo(json.dumps(report))
    click.get_current_context().exit(0 if report["ok"] else 1)


def _print(console: Console, report: dict[str, Any]) -> None:
    from rich.text import Text

    for name, text, style in _lines(report):
        console.print(
            Text.assemble((f"{name:<16}", "bold"), (printable(text), style)), soft_wrap=True
        )
    for number, warning in enumerate(report["warnings"], 1):
        console.print(
            Text.assemble(
                (f"{f'warning {number}':<16}", "bold yellow"),
                f"{printable(warning['what'])}\n{'':<16}-> {printable(warning['do'])}",
            ),
            soft_wrap=True,
        )


def _lines(report: dict[str, Any]) -> Iterator[Line]:
    """Yield name, text and style of each line above the warnings."""
    from .diagnosis import list_libraries

    python = report["python"]
    yield "ffd", f"{report['ffd']}, Python {python['version']} ({python['executable']})", ""
    yield "system", report["os"], ""
    yield from _machine(report)
    packages = [f"{name} {version}" for name, version in report["packages"].items()]
    yield "packages", ", ".join(packages) or "none found", ""
    special = {"opencv": _opencv, "model": _model}
    for name in ("opencv", *list_libraries()[0], "model"):
        describe = special.get(name, _library)
        facts = report[name]
        good = facts["outcome"] == "started"
        yield name, describe(facts) if good else _explain_failure(facts), "" if good else BAD
    for name, facts in report["engines"].items():
        yield _outcome("cuda-bindings" if name == "cuda" else name, facts, _engine)
    for facts in report["backends"]:
        name = f"{facts['backend']} {facts['device']}"
        yield _outcome("default" if name == "auto auto" else name, facts, _backend)


def _machine(report: dict[str, Any]) -> Iterator[Line]:
    cpu, memory, gpu = report["cpu"], report["memory"], report["gpu"]
    quota = f", {cpu['cores_quota']:g} by quota" if cpu["cores_quota"] else ""
    cores = f"{cpu['cores_usable']} of {cpu['cores_present']} cores usable{quota}"
    yield "cpu", f"{cpu['name']} ({cpu['architecture']}), {cores}", ""
    if cpu["features"] is None:
        yield "", "features unknown on this system", ""
    else:
        yield "", f"{', '.join(cpu['features']) or 'no vector features for inference'}", ""
        yield "", f"INT8 {cpu['int8']}", ""
    kinds = {"in total": "total", "available": "available", "limit of this container": "limit"}
    sizes = {kind: memory[f"{key}_bytes"] for kind, key in kinds.items()}
    parts = [f"{_gib(size)} {kind}" for kind, size in sizes.items() if size is not None]
    yield "memory", ", ".join(parts) or "unknown", ""
    yield from _gpus(gpu)


def _gpus(gpu: dict[str, Any]) -> Iterator[Line]:
    if gpu["outcome"] != "started":
        yield "gpu", _explain_failure(gpu), BAD
        return
    for device in gpu["devices"]:
        capability = f"compute capability {device['compute_capability']}"
        yield "gpu", f"{device['name']}, {capability}, {_gib(device['memory_bytes'])}", ""
    if not gpu["devices"]:
        count = f"{gpu['pci']} on the PCI bus: " if gpu["pci"] else "none: "
        reason = gpu.get("reason") or "NVIDIA's driver is not installed"
        yield "gpu", f"{count}{reason}", ""
    if gpu["cuda"]:
        yield "", f"driver {gpu['driver'] or 'of unknown version'}, CUDA {gpu['cuda']}", ""


def _opencv(facts: dict[str, Any]) -> str:
    formats = " ".join(name for name, reads in facts["formats"].items() if reads)
    names = {"FFmpeg": "ffmpeg", "GStreamer": "gstreamer", "FaceDetectorYN": "face_detector"}
    parts = (f"{name} {'yes' if facts[key] else 'no'}" for name, key in names.items())
    return f"{facts['version']}, reads {formats}; {', '.join(parts)}"


def _library(facts: dict[str, Any]) -> str:
    """Return the version, then every other fact of a backend's `probe`."""
    parts = [facts["version"]]
    for name, value in facts.items():
        if name not in ("version", "outcome", "said") and value:
            pairs = value.items() if isinstance(value, dict) else ()
            listed = [f"{key} ({what})" for key, what in pairs] or value
            text = ", ".join(map(str, listed)) if isinstance(listed, list) else str(listed)
            parts.append(f"{name.replace('_', ' ')} {text}")
    return "; ".join(parts)


def _model(facts: dict[str, Any]) -> str:
    return f"{facts['path']}, {facts['bytes'] / 1e6:.1f} MB, sha256 {facts['sha256']}"


def _engine(facts: dict[str, Any]) -> str:
    note = ", no GPU to start it on" if facts["outcome"] == "loaded" else ""
    return f"{facts['version']}{note}"


def _backend(facts: dict[str, Any]) -> str:
    return (
        f"{facts['description']}; {facts['model']} opened in {facts['open_ms']:.0f} ms, first "
        f"image {facts['first_ms']:.0f} ms, score {facts['score']:.6f}"
    )


def _outcome(name: str, facts: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> Line:
    outcome = facts["outcome"]
    text = describe(facts) if outcome in ("started", "loaded") else _explain_failure(facts)
    return name, f"{outcome:<8} {text}", STYLES.get(outcome, BAD)


def _explain_failure(facts: dict[str, Any]) -> str:
    return f"{facts['reason']}: {facts['do']}" if facts["do"] else str(facts["reason"])


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
