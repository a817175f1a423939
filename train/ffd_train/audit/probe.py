"""Probes: simple classifiers that separate images by cues other than the face.

AUC is the area under the ROC curve: 0.5 is guessing, 1.0 is perfect. All AUCs are cross-validated
and deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from ffd_runtime.model.card import CLASSES

from .appearance import SMALL
from .facts import FACTS, Fact, Table
from .groups import describe_typical

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FOLDS = 5
# Minimum number of different images on each side.
MIN_IMAGES = 20
# Maximum number of images on each side; enough for an AUC with an error of a hundredth.
MAX_IMAGES = 2000
# Only the largest sources are probed.
MAX_SOURCES = 12
MAX_SOURCE_PICTURES = 1000
# An AUC stands out if it is large enough to matter, and unlikely to be random.
MIN_AUC = 0.6
MIN_STANDARD_ERRORS = 3.5

VIEWS = {
    "file": "file facts",
    "border": "the border",
    "thumbnail": "an 8x8 thumbnail",
    "detail": "sharpness",
}


@dataclass(frozen=True)
class Score:
    """A cross-validated AUC.

    Attributes:
        auc: mean over the folds.
        deviation: standard deviation over the folds.
        chance: standard error of the mean for a guessing classifier with as many images.
    """

    auc: float
    deviation: float
    chance: float

    @property
    def stands_out(self) -> bool:
        """Whether the AUC is large enough to matter, and unlikely to be random."""
        return self.auc >= max(MIN_AUC, 0.5 + MIN_STANDARD_ERRORS * self.chance)


@dataclass(frozen=True)
class FactScore:
    """How well one fact separates two sides.

    Attributes:
        fact: the fact.
        score: score of a tree that uses only this fact.
        values: the typical value of each side, such as `{"generated": "75", "groundtruth": "95"}`.
    """

    fact: Fact
    score: Score
    values: dict[str, str]


@dataclass(frozen=True)
class Probe:
    """How well one view separates the classes.

    Attributes:
        view: key of `VIEWS`.
        score: score of a forest that uses the whole view.
        telling: single facts that stand out, the best first.
    """

    view: str
    score: Score
    telling: tuple[FactScore, ...]


@dataclass(frozen=True)
class SourceProbe:
    """How well a source can be separated from the others of its class.

    Attributes:
        file: score of the file facts.
        framing: score of an 8x8 grey thumbnail with normalised brightness and contrast.
        telling: single file facts that stand out.
    """

    source: str
    label: int
    file: Score
    framing: Score
    telling: tuple[FactScore, ...]


def probe_classes(table: Table, copy_of: npt.NDArray[np.int64]) -> list[Probe]:
    """Separate the classes by file facts, border, thumbnail and sharpness.

    Args:
        table: facts of N images.
        copy_of: [N], index of the image that each is a copy of; copies share a fold.

    Returns:
        One probe for each of `VIEWS`; none if a class has fewer than `MIN_IMAGES` images.
    """
    generated = table.labels == 0
    chosen = _choose(table, generated, ~generated, MAX_IMAGES)
    trial = _CrossValidation.prepare(table, chosen, generated, copy_of)
    if trial is None:
        return []
    sides = dict(zip(CLASSES, (generated, ~generated), strict=True))
    return [
        Probe(view, trial.score(_seen(table, view)), _telling(table, trial, view, sides))
        for view in VIEWS
    ]


def probe_sources(table: Table, copy_of: npt.NDArray[np.int64]) -> list[SourceProbe]:
    """Separate each source from the others of its class; small sources are skipped."""
    probes = []
    names, counts = np.unique(table.sources, return_counts=True)
    largest = sorted(zip(counts.tolist(), names.tolist(), strict=True), reverse=True)[:MAX_SOURCES]
    for source in sorted(name for _, name in largest if name):
        for label in (0, 1):
            own = (table.sources == source) & (table.labels == label)
            others = (table.sources != source) & (table.labels == label)
            chosen = _choose(table, own, others, MAX_SOURCE_PICTURES)
            trial = _CrossValidation.prepare(table, chosen, own, copy_of)
            if trial:
                sides = {source: own, "the others": others}
                probes.append(
                    SourceProbe(
                        source,
                        label,
                        trial.score(_seen(table, "file")),
                        trial.score(_framing(table)),
                        _telling(table, trial, "file", sides),
                    )
                )
    return probes


@dataclass(frozen=True)
class _CrossValidation:
    """The images of a probe, and their folds."""

    chosen: npt.NDArray[np.int64]
    positive: Mask
    folds: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    chance: float

    @classmethod
    def prepare(
        cls, table: Table, chosen: npt.NDArray[np.int64], asked: Mask, copy_of: Any
    ) -> _CrossValidation | None:
        """Divide the images into folds; None if a side has too few images."""
        positive, groups = asked[chosen], copy_of[chosen]
        ours, others = (len(np.unique(groups[side])) for side in (positive, ~positive))
        if min(ours, others) < MIN_IMAGES:
            return None
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        folds = [
            (train, test)
            for train, test in splitter.split(positive, positive, groups)
            # With many copies of one image, a fold may contain only one side.
            if 0 < positive[train].sum() < len(train) and 0 < positive[test].sum() < len(test)
        ]
        if not folds:
            return None
        return cls(chosen, positive, folds, _chance(ours, others))

    def score(self, values: Values, alone: bool = False) -> Score:
        """Cross-validate a forest on features, [N, F]; a small tree for a fact alone."""
        seen = values[self.chosen]
        aucs = []
        for train, test in self.folds:
            model: Any = ExtraTreesClassifier(40, min_samples_leaf=3, random_state=0)
            if alone:
                leaf = max(5, len(train) // 100)
                model = DecisionTreeClassifier(max_depth=3, min_samples_leaf=leaf, random_state=0)
            model.fit(seen[train], self.positive[train])
            scores = model.predict_proba(seen[test])[:, 1]
            aucs.append(roc_auc_score(self.positive[test], scores))
        return Score(float(np.mean(aucs)), float(np.std(aucs)), self.chance)


def _chance(ours: int, others: int) -> float:
    """Return the standard error of the cross-validated AUC of a guessing classifier.

    The variance of one AUC is Mann and Whitney's (On a test of whether one of two random variables
    is stochastically larger, 1947). Folds share training images, which increases the variance of
    their mean. It is corrected as by Nadeau and Bengio (Inference for the generalization error,
    2003).
    """
    variance = (ours + others + 1) / (12 * ours * others)
    return float(np.sqrt(variance * FOLDS * (1 / FOLDS + 1 / (FOLDS - 1))))


def _choose(table: Table, ours: Mask, others: Mask, most: int) -> npt.NDArray[np.int64]:
    """Choose at most `most` images of each side by their digests, which are random."""
    order = np.lexsort(table.digests.T[:8])
    sides = (order[side[order]][:most] for side in (ours, others))
    return np.sort(np.concatenate(list(sides)))


def _telling(
    table: Table, trial: _CrossValidation, view: str, sides: dict[str, Mask]
) -> tuple[FactScore, ...]:
    """Return the facts that stand out, the best first, and one of each family."""
    found: dict[str, FactScore] = {}
    for fact in (fact for fact in FACTS if fact.view == view):
        score = trial.score(_numbers(table, fact), alone=True)
        known = found.get(fact.family)
        if score.stands_out and (known is None or score.auc > known.score.auc + 0.005):
            values = {
                name: describe_typical(table.columns[fact.name][side], fact)
                for name, side in sides.items()
            }
            found[fact.family] = FactScore(fact, score, values)
    return tuple(sorted(found.values(), key=lambda one: -round(one.score.auc, 2)))


def _seen(table: Table, view: str) -> Values:
    """Return the features of a view: float32 [N, F]."""
    facts = [_numbers(table, fact) for fact in FACTS if fact.view == view]
    if view == "border":
        ring = np.ones((SMALL, SMALL), bool)
        ring[1:-1, 1:-1] = False
        facts.append(table.smalls[:, ring].reshape(len(table.smalls), -1).astype(np.float32))
    elif view == "thumbnail":
        # The pixels determine the facts of a thumbnail.
        return _thumbnails(table).reshape(len(table.smalls), -1)
    return np.concatenate(facts, axis=1)


def _framing(table: Table) -> Values:
    grey = _thumbnails(table).mean(axis=3).reshape(len(table.smalls), -1)
    grey -= grey.mean(axis=1, keepdims=True)
    return np.asarray(grey / np.maximum(grey.std(axis=1, keepdims=True), 1e-3), np.float32)


def _thumbnails(table: Table) -> Values:
    half = SMALL // 2
    cells = table.smalls.reshape(-1, half, 2, half, 2, 3)
    return np.asarray(cells.mean(axis=(2, 4)), np.float32)


def _numbers(table: Table, fact: Fact) -> Values:
    """Return a fact as features: float32 [N, 1], or one-hot [N, values] of a category."""
    column = table.columns[fact.name]
    if fact.digits is None:
        return np.asarray(column[:, None] == np.unique(column), np.float32)
    return np.asarray(np.nan_to_num(column, nan=-1.0), np.float32)[:, None]
