"""ffd-export: from a checkpoint to a file that the runtime runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from ffd_runtime.commands.common import Command, say, say_more, version_option

EPILOG = """\b
Examples:
  ffd-export                          the newest run in runs/
  ffd-export runs/mine --output models/
  ffd-export best.safetensors --verify some-faces/
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--verify",
    metavar="DIR|none",
    help="Real images to compare the export with the checkpoint on. Default: the run's "
    "validation images.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the file. Default: beside the checkpoint.",
)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@version_option()
def main(model: Path | None, verify: str | None, output: Path | None, runs: Path) -> None:
    """Export MODEL, a checkpoint or a run's folder, to one self-contained FP32 ONNX.

    Without MODEL, the newest run. The file is compared with the checkpoint on real images; if it
    differs, the command fails and writes no file.
    """
    from ffd_train.checkpoint import load_card

    from ..runs import find_checkpoint, find_verification

    checkpoint = find_checkpoint(model, runs)
    if "val" not in load_card(checkpoint).metrics:
        say("the checkpoint is not calibrated: its training has not ended (ffd-train --resume)")
    images: list[str] = []
    if verify != "none":
        images = find_verification(checkpoint, Path(verify) if verify else None)
    path = (output or checkpoint.parent) / f"{checkpoint.stem}.onnx"
    say(f"exporting {checkpoint}")
    _export(checkpoint, images, path)
    size = path.stat().st_size / 1e6
    say(f"wrote {path}, {size:.1f} MB")


def _export(checkpoint: Path, images: list[str], path: Path) -> None:
    from ffd_runtime.backends import open_backend
    from ffd_train.evaluation import open_model

    from ..graph import export_checkpoint
    from ..onnx_file import write_onnx
    from ..parity import compare

    graph, card = export_checkpoint(checkpoint)
    say_more(card.to_json(indent=2))
    if not images:
        say("not verified")
        write_onnx(graph, card.replace(metrics={**card.metrics, "parity": {"images": 0}}), path)
        return
    # Verified where it cannot be mistaken for the result; only what passes reaches `path`.
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        write_onnx(graph, card, candidate)
        parity = compare(
            open_model(checkpoint, "cpu"), open_backend(candidate, device="cpu"), images
        )
    say(
        f"against PyTorch on {parity.images} images: largest |Δp| {parity.largest:.1e}, "
        f"mean {parity.mean:.1e}, {parity.flips} verdict flips"
    )
    parity.require(card.precision)
    write_onnx(graph, card.replace(metrics={**card.metrics, "parity": parity.summary()}), path)
