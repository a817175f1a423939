"""The results of one run of ffd-eval, and their JSON document and summary."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from ffd_runtime import __version__
from ffd_runtime.core.errors import DataError
from ffd_runtime.core.file_hash import hash_file

from ..comparison import Comparison, compare, describe
from ..evaluation import Evaluation
from ..face_data import FaceData
from ..intervals import CONFIDENCE, SEED, Interval, count_resamples, resample
from ..robustness import CLEAN, Cell

# Maximum number of misclassified images of each class that are shown.
WORST = 12
# Maximum loss of ROC-AUC under a perturbation that counts as stable.
STABLE_LOSS = 0.02


@dataclass(frozen=True)
class Subject:
    """An evaluated model.

    Attributes:
        name: name of the card; with a suffix if two models share it.
        file: path of the file, or `embedded`.
        runs_on: model, backend and device on one line.
        evaluation: evaluation of the clean images.
        cells: robustness cells, the clean one first; empty if not measured.
    """

    name: str
    file: str
    sha256: str
    runs_on: str
    evaluation: Evaluation
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Study:
    """One run of ffd-eval.

    Attributes:
        data: measured images.
        split: requested split; None for the default.
        available: number of images that `data` was drawn from.
        other: model to compare with, or None.
        comparisons: comparisons by the name of the cell; only `CLEAN` without robustness, and
            empty without another model.
    """

    subject: Subject
    data: FaceData
    split: str | None
    available: int
    started: datetime
    other: Subject | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)

    @property
    def subjects(self) -> list[Subject]:
        """One model or two."""
        return [self.subject, self.other] if self.other else [self.subject]

    def against(self, other: Subject) -> Study:
        """Return the run with another model, measured on the same data."""
        subject = self.subject
        if subject.name == other.name:
            subject = replace(subject, name=f"{subject.name} (A)")
            other = replace(other, name=f"{other.name} (B)")
        compared = compare_subjects(subject, other)
        return replace(self, subject=subject, other=other, comparisons=compared)

    def verdicts(self) -> list[str]:
        """Describe which model is better; empty without another model."""
        if not self.other:
            return []
        return describe(self.comparisons[CLEAN], self.subject.name, self.other.name)


def compare_subjects(one: Subject, two: Subject) -> dict[str, Comparison]:
    """Compare two models in every cell, on the images that both have classified.

    Raises:
        DataError: a class has no such image.
    """
    first, second = one.evaluation, two.evaluation
    pairs = list(zip(first.rows, second.rows, strict=True))
    here = [b.score is not None for a, b in pairs if a.score is not None]
    there = [a.score is not None for a, b in pairs if b.score is not None]
    generated = first.generated[here]
    if generated.all() or not generated.any():
        raise DataError(f"{first.data.root}: a class has no image that both models could classify")
    scores = first.scores[here], second.scores[there]
    # The draws are the same on the same images.
    resampled = (
        (first.resampled, second.resampled)
        if all(here) and all(there)
        else (resample(scores[0], generated), resample(scores[1], generated))
    )
    found = {CLEAN: compare(*scores, generated, first.card, second.card, resampled)}
    # The first cell is the clean one.
    for cell, also in zip(one.cells[1:], two.cells[1:], strict=True):
        scores = cell.scores[here], also.scores[there]
        found[cell.name] = compare(*scores, generated, first.card, second.card)
    return found


def to_document(study: Study) -> dict[str, Any]:
    """Return all results as JSON types, with the keys of the report at the top level."""
    document: dict[str, Any] = _of_subject(study.subject)
    if study.other:
        cells = {name: asdict(found) for name, found in study.comparisons.items()}
        document["comparison"] = {"other": _of_subject(study.other), **cells.pop(CLEAN)}
        document["comparison"]["robustness"] = cells or None
    document["data"] = {
        "folder": str(study.data.root),
        "split": study.split,
        "images": len(study.data.samples),
        "available": study.available,
        "manifest_sha256": manifest_of(study.data),
    }
    resamples = count_resamples(study.subject.evaluation.report.images)
    document["bootstrap"] = {"resamples": resamples, "seed": SEED, "confidence": CONFIDENCE}
    document["note"] = note_strictness(study.subject)
    document["date"] = study.started.isoformat(timespec="seconds")
    document["version"] = __version__
    return document


def _of_subject(subject: Subject) -> dict[str, Any]:
    found = subject.evaluation
    return {
        "model": found.card.name,
        **asdict(found.report),
        "unreadable": [row.to_dict() for row in found.unreadable],
        "intervals": found.intervals,
        "calibration": asdict(found.reliability),
        "worst": {
            "generated": [row.to_dict() for _, row in found.worst(0, WORST)],
            "groundtruth": [row.to_dict() for _, row in found.worst(1, WORST)],
        },
        "robustness": {cell.name: cell.to_json() for cell in subject.cells} or None,
        "file": subject.file,
        "sha256": subject.sha256,
        "runs_on": subject.runs_on,
        "precision": found.card.precision,
        "threshold": found.card.threshold,
        "unsure": found.card.unsure,
        "temperature": found.card.temperature,
    }


def manifest_of(data: FaceData) -> str | None:
    """Return a digest of the images' contents if known, else of manifest.csv, else None."""
    if all(sample.sha256 for sample in data.samples):
        return data.manifest_sha256
    path = data.root / "manifest.csv"
    return hash_file(path) if path.is_file() else None


def note_strictness(subject: Subject) -> str | None:
    """Explain the TPR at 1 % FPR if 1 % of the photographs is less than one; else None."""
    count = int((~subject.evaluation.generated).sum())
    if count >= 100:
        return None
    return (
        f"Of {count} photographs, 1 % is less than one: the TPR at 1 % FPR is measured without "
        "false positives."
    )


def summarise(study: Study) -> list[str]:
    """Summarise the results in sentences."""
    lines = study.verdicts()
    for subject in study.subjects:
        lines += _summarise_model(subject)
    if study.subject.evaluation.unreadable:
        count = len(study.subject.evaluation.unreadable)
        what = "image" if count == 1 else "images"
        lines.append(f"{count} {what} could not be read: the metrics exclude them.")
    return lines


def _summarise_model(subject: Subject) -> list[str]:
    found = subject.evaluation
    report, intervals = found.report, found.intervals
    misses, alarms = (1 - report.per_class[name] for name in ("generated", "groundtruth"))
    lines = [
        f"{subject.name} is right on {percent(report.accuracy)} of {report.images:,} images "
        f"({span(intervals['accuracy'])}) at its threshold of {found.card.threshold:.3g}. Of 100 "
        f"generated faces it misses {100 * misses:.1f}, and of 100 photographs it classifies "
        f"{100 * alarms:.1f} as generated.",
        f"At {_describe_fpr(subject)} it finds {percent(report.tpr_at_1_fpr)} of the generated "
        f"faces ({span(intervals['tpr_at_1_fpr'])}). Its ROC-AUC is {report.roc_auc:.4f}.",
        f"Its expected calibration error is {100 * report.ece:.1f} percentage points.",
    ]
    if len(report.per_family) > 1:
        shares = (
            f"{percent(row['accuracy'])} of {name}" for name, row in report.per_family.items()
        )
        lines.append(f"By family of generators it finds {', '.join(shares)}.")
    if len(report.per_source) > 1:
        # Of equally weak sources, the one with the most images.
        name, row = min(
            report.per_source.items(), key=lambda item: (item[1]["accuracy"], -item[1]["images"])
        )
        weakest = (
            f"Its weakest source is {name}: {percent(row['accuracy'])} of {row['images']} images "
            f"right ({span(intervals['per_source'][name])})."
        )
        perfect = row["accuracy"] == 1
        lines.append("It is right on every image of every source." if perfect else weakest)
    if subject.cells:
        clean, *others = subject.cells
        stable = sum(cell.roc_auc >= clean.roc_auc - STABLE_LOSS for cell in others)
        worst = sorted(others, key=lambda cell: cell.roc_auc)[:3]
        named = "; ".join(f"{cell.label} ({cell.roc_auc:.3f})" for cell in worst)
        lines.append(
            f"Its ROC-AUC stays within {STABLE_LOSS} of the clean images' under {stable} of "
            f"{len(others)} perturbations. The worst: {named}."
        )
    return lines


def _describe_fpr(subject: Subject) -> str:
    if note_strictness(subject) is None:
        return "1 % FPR"
    count = int((~subject.evaluation.generated).sum())
    return f"no false positive (with {count} photographs, 1 % is less than one)"


def percent(share: float) -> str:
    """Format a share, such as `98.1 %`."""
    return f"{100 * share:.1f} %"


def span(interval: Interval) -> str:
    """Format an interval of a share, such as `97.0 to 98.9 %`."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
