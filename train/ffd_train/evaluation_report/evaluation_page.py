"""The HTML page of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime import __version__
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.results import Result
from ffd_runtime.image.draw import EVIDENCE_LIMIT, evidence_layer
from ffd_runtime.model.card import CLASSES
from ffd_runtime.outputs.html_page import data_uri, encode_image, render_page
from ffd_runtime.outputs.html_report import card_facts

from ..face_data import Sample
from ..intervals import CONFIDENCE, count_resamples
from ..robustness import CLEAN, Cell
from ..thumbnail import embed_thumbnail
from . import evaluation_plots as plots
from .page_tables import (
    ROBUSTNESS_METRICS,
    groups_table,
    metrics_table,
    robustness_by_group_tables,
)
from .study import WORST, Study, Subject, manifest_of, note_strictness, summarise

if TYPE_CHECKING:
    from markupsafe import Markup

THUMBNAIL_PIXELS = 224
# The browser scales the evidence up.
OVERLAY_PIXELS = 56
MAX_UNREADABLE = 500
# Metrics with a chart over all perturbations.
CHARTS = ("roc_auc", "accuracy", "tpr_at_1_fpr")

_TEMPLATE = Path(__file__).with_name("evaluation.html")


# A misclassified image, its result, its thumbnail and evidence. The thumbnail is None if the file
# cannot be read any more.
_Card = tuple[Sample, Result, "Markup | None", "Markup | None"]
# Key and axis of a metric, and the cells of all models for each perturbation.
_Chart = tuple[str, plots.Axis, list[tuple[Cell, ...]]]


def write_page(path: Path, study: Study) -> None:
    """Write the page atomically.

    Raises:
        OutputError: it cannot be written.
    """
    subjects = study.subjects
    names = [subject.name for subject in subjects]
    comparison = study.comparisons.get(CLEAN)
    unreadable = study.subject.evaluation.unreadable
    models = [(subject.name, _model_facts(subject)) for subject in subjects]
    evaluations = [subject.evaluation for subject in subjects]
    page = render_page(
        _TEMPLATE,
        page="evaluation",
        eyebrow="ffd evaluation",
        heading=" and ".join(names),
        started=study.started,
        images=f"{len(study.data.samples):,}",
        root=str(study.data.root),
        names=names,
        subjects=subjects,
        series=plots.SERIES,
        summary=summarise(study),
        metrics=metrics_table(study),
        strictness=note_strictness(study.subject),
        compared_images=f"{comparison.images:,}" if comparison else "",
        roc=plots.plot_roc(evaluations),
        precision_recall=plots.plot_precision_recall(evaluations),
        reliability=plots.plot_reliability(evaluations),
        families=groups_table(subjects, "per_family"),
        sources=groups_table(subjects, "per_source"),
        charts=[_chart(subjects, key) for key in CHARTS] if study.subject.cells else (),
        robustness_metrics=ROBUSTNESS_METRICS,
        robustness_by_group=robustness_by_group_tables,
        comparisons=study.comparisons,
        galleries=[[_find_worst(subject, label) for label in (0, 1)] for subject in subjects],
        worst=WORST,
        evidence_limit=EVIDENCE_LIMIT,
        thumbnail_side=THUMBNAIL_PIXELS,
        unreadable=unreadable[:MAX_UNREADABLE],
        more_unreadable=len(unreadable) - MAX_UNREADABLE,
        blocks=[*models, ("Data", _data_facts(study))],
        confidence=f"{100 * CONFIDENCE:.0f} %",
        resamples=f"{count_resamples(study.subject.evaluation.report.images):,}",
    )
    write_output(path, page.encode())


def _chart(subjects: Sequence[Subject], key: str) -> _Chart:
    lowest = min(cell.intervals[key][0] for subject in subjects for cell in subject.cells)
    rows = list(zip(*(subject.cells for subject in subjects), strict=True))
    return key, plots.axis_of(lowest, ROBUSTNESS_METRICS[key]), rows


def _find_worst(subject: Subject, label: int) -> list[_Card]:
    """Return the most confident errors on images of a class."""
    cards = []
    for sample, row in subject.evaluation.worst(label, WORST):
        photo = embed_thumbnail(subject.evaluation.data, sample, THUMBNAIL_PIXELS)
        evidence = None
        if photo and row.heatmap is not None:
            layer = evidence_layer(row.heatmap, OVERLAY_PIXELS)
            evidence = data_uri("png", encode_image(".png", layer))
        cards.append((sample, row, photo, evidence))
    return cards


def _model_facts(subject: Subject) -> dict[str, str]:
    facts = card_facts(subject.evaluation.card)
    return {**facts, "file": subject.file, "sha256": subject.sha256}


def _data_facts(study: Study) -> dict[str, str]:
    samples = study.data.samples
    kinds = Counter(CLASSES[sample.label] for sample in samples)
    count = f"{len(samples):,}"
    if study.available > len(samples):
        count += f", drawn by class and source from {study.available:,}"
    return {
        "folder": str(study.data.root),
        "split": ", ".join(sorted({sample.split for sample in samples if sample.split})) or "all",
        "images": count,
        **{name: f"{kinds[name]:,}" for name in CLASSES},
        "manifest": manifest_of(study.data) or "none",
        "measured by": f"ffd {__version__}",
    }
