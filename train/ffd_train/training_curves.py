"""The plot of a run's metrics."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path


def plot_curves(metrics: Path, output: Path) -> None:
    """Plot `metrics.csv` over the epochs to a PNG of 1200 x 450 pixels, and mark the stages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, names in (
        (loss, ("train_loss", "val_loss")),
        (accuracy, ("train_accuracy", "val_accuracy", "val_auc")),
    ):
        for name in names:
            axes.plot(
                epochs, [float(row[name]) for row in rows], marker=".", label=name.replace("_", " ")
            )
        for before, row in pairwise(rows):
            if row["stage"] != before["stage"]:
                axes.axvline(int(before["epoch"]) + 0.5, color="0.7", linestyle="--", linewidth=1)
        axes.set_xlabel("epoch (dashed: a new stage)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_ylabel("cross-entropy")
    FigureCanvasAgg(figure)
    figure.savefig(output, dpi=100)
