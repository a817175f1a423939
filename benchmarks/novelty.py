"""Measure whether scores of novelty separate missed faces of unknown generators from photographs.

Usage: python benchmarks/novelty.py BOTH MODEL SOURCE [SOURCE ...] > benchmarks/novelty.csv

BOTH has all sources. MODEL is an FP32 ONNX of `ffd-export`. SOURCE was left out of its training. A
score of novelty is useful if it is higher for the missed faces of generators that the model was not
trained on, whose P(generated) is below the unsure band, than for the unseen photographs there. The
missed faces could then be `unsure`.

Scores, from the features before the classifier: `mahalanobis`, the distance to the nearer class
mean of the training images; `neighbour`, the cosine distance to the fifth nearest training image;
`norm`, the negative length. From the logits: `energy`, the negative logsumexp, and `probability`,
P(generated), which the unsure band already uses.

Columns: `limit` is the score that 5 % of the trained sources' validation photographs below the
band exceed. `missed_beyond` and `kept_beyond` are the shares of the missed faces and of the unseen
photographs below the band that exceed the limit. The first line has their numbers. `auc` is the
ROC-AUC of the score between both: 0.5 means that it does not help.
"""

from __future__ import annotations

import csv
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from machine import describe
from scipy.special import expit, logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ffd_export.onnx_file import read_onnx
from ffd_runtime.core.pipeline import prepare
from ffd_runtime.model.card import ModelCard
from ffd_train.face_data import FaceData, Sample
from ffd_train.scanning import scan

TRAINING_IMAGES = 4000
NEIGHBOURS = 5
EXCEEDED_BY = 0.05
BATCH = 8

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def infer(
    model: onnx.ModelProto, card: ModelCard, data: FaceData, samples: list[Sample]
) -> tuple[Floats, Floats]:
    """Return the features, float64 [N, C], and the calibrated logits, float64 [N, 2]."""
    (head,) = (node for node in model.graph.node if node.name == "head")
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    names = [head.input[0], softmax.input[0]]
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        extended.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    outputs = []
    with ThreadPoolExecutor(1) as pool:
        prepared = pool.map(partial(prepare, spec=card.preprocess), map(data.item, samples))
        while batch := [one.image for one in islice(prepared, BATCH)]:
            outputs.append(
                session.run(names, {"image": np.stack([np.asarray(image) for image in batch])})
            )
    features, logits = zip(*outputs, strict=True)
    return np.concatenate(features).astype(np.float64), np.concatenate(logits).astype(np.float64)


def measure_novelty(
    known: Floats, known_generated: Bools, features: Floats, logits: Floats
) -> dict[str, Floats]:
    """Return each score of novelty, float64 [N], from the features of training images, [M, C]."""
    means = {truth: known[known_generated == truth].mean(0) for truth in (True, False)}
    centred = known - np.where(known_generated[:, None], means[True], means[False])
    whiten = np.linalg.cholesky(LedoitWolf().fit(centred).precision_)
    distances = [np.linalg.norm((features - mean) @ whiten, axis=1) for mean in means.values()]
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(known)
    return {
        "mahalanobis": np.min(distances, axis=0),
        "neighbour": neighbours.kneighbors(features)[0][:, -1],
        "norm": -np.linalg.norm(features, axis=1),
        "energy": -logsumexp(logits, axis=1),
        "probability": expit(logits[:, 0] - logits[:, 1]),
    }


def main() -> None:
    """Print a CSV."""
    data, left_out = scan(Path(sys.argv[1]), ("train", "val")), set(sys.argv[3:])
    model, card = read_onnx(Path(sys.argv[2]))
    train = [sample for sample in data.split("train") if sample.source not in left_out]
    trained = {sample.source for sample in train}
    train = random.Random(0).sample(train, min(TRAINING_IMAGES, len(train)))
    samples = [s for s in data.samples if s.split == "val" or s.source in left_out]
    known, _ = infer(model, card, data, train)
    features, logits = infer(model, card, data, samples)

    generated = np.array([sample.label == 0 for sample in samples])
    unseen = np.array([sample.source not in trained for sample in samples])
    below = expit(logits[:, 0] - logits[:, 1]) < card.unsure[0]
    missed, kept = below & unseen & generated, below & unseen & ~generated
    known_generated = np.array([sample.label == 0 for sample in train])
    print(f"# {describe()}; {missed.sum()} missed, {kept.sum()} kept, {len(train)} for training")
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("score", "limit", "missed_beyond", "kept_beyond", "auc"))
    for name, novelty in measure_novelty(known, known_generated, features, logits).items():
        limit = np.quantile(novelty[below & ~unseen & ~generated], 1 - EXCEEDED_BY)
        shares = [np.mean(novelty[chosen] > limit) for chosen in (missed, kept)]
        chosen = missed | kept
        auc = roc_auc_score(generated[chosen], novelty[chosen])
        table.writerow((name, *(f"{value:.4f}" for value in (limit, *shares, auc))))


if __name__ == "__main__":
    main()
