"""Compare the speed of ffd-train with that of a plain PyTorch loop, on the same images.

Usage: python benchmarks/training.py FACES [NETWORK [BATCH [CROP]]] > benchmarks/training.csv

Three ways train the whole network in turns. `memory` is a loop over one batch on the device: the
upper bound. `loop` is a loop over a DataLoader of the same images, augmented and preprocessed.
`ffd-train` adds moving average, gradient clipping, metrics, NaN checks and TensorBoard.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ffd_runtime.model.card import PreprocessSpec
from ffd_train.dataset import FaceDataset, TrainingView
from ffd_train.face_data import FaceData
from ffd_train.networks import build
from ffd_train.sampling import MicroBatchSampler, draw_epoch
from ffd_train.scanning import scan
from ffd_train.settings import Settings, choose_device
from ffd_train.stage import Stage
from ffd_train.training import train

STEPS = 20
ROUNDS = 3


def plain_loop(settings: Settings, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Measure images a second of a plain training loop."""
    device, precision = choose_device(settings)
    net = build(settings.network).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9)
    low = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    loss = nn.CrossEntropyLoss()
    value = torch.zeros(())
    count = 0
    start = time.perf_counter()
    for images, labels in batches:
        with torch.autocast(device, low, enabled=precision != "32-true"):
            logits = net(images.to(device, non_blocking=True))
            value = loss(logits, labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        count += len(labels)
    float(value)  # Wait for the GPU.
    return count / (time.perf_counter() - start)


def loader(data: FaceData, settings: Settings) -> Iterable[tuple[Tensor, Tensor]]:
    """Return a loader as in ffd-train."""
    s, samples = settings, data.split("train")
    dataset = FaceDataset(
        data, samples, PreprocessSpec(), TrainingView(s.recipe, s.crop, s.sizes, s.seed)
    )
    batches = MicroBatchSampler(draw_epoch(samples, s.balance, s.seed, 0), s.batch)
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=s.workers or 0, pin_memory=s.device == "cuda"
    )


def ours(data: FaceData, settings: Settings) -> float:
    """Measure images a second of an epoch of ffd-train, with validation on a few images."""
    with tempfile.TemporaryDirectory() as folder:
        train(data, settings, Path(folder) / "run")
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    return len(data.split("train")) / float(rows[-1]["seconds"])


def take(data: FaceData, count: int) -> FaceData:
    """Return a number of images to train on and a few to validate on, from both classes."""
    kept = []
    for split, images in (("train", count), ("val", 8)):
        for label in (0, 1):
            own = [s for s in data.split(split) if s.label == label]
            kept += list(itertools.islice(itertools.cycle(own), images // 2))
    return replace(data, samples=tuple(kept))


def main() -> None:
    """Print a CSV: what trains, images a second, and the shares of both loops' speed."""
    faces, *rest = sys.argv[1:]
    network, batch, crop = (*rest, *("tf_efficientnet_lite0", "32", "192")[len(rest) :])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(
        network=network,
        weights="none",
        stages=(Stage("all", 1, 1e-3),),
        batch=int(batch),
        crop=int(crop) if int(crop) < 299 else None,
        precision="bf16",
        device=device,
        workers=torch.get_num_threads(),
    )
    data = take(scan(faces, ("train", "val")), STEPS * settings.batch)
    one = next(iter(loader(data, settings)))
    there = [tensor.to(device) for tensor in one]
    ways: dict[str, Callable[[], float]] = {
        "memory": lambda: plain_loop(settings, [(there[0], there[1])] * STEPS),
        "loop": lambda: plain_loop(settings, loader(data, settings)),
        "ffd-train": lambda: ours(data, settings),
    }
    ways["memory"]()
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            speeds[name].append(way())
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    print(f"# {describe()}{gpu}, torch {torch.__version__}; {network}, batch {batch}, crop {crop}")
    print("trains,images_a_second,share_of_memory,share_of_loop")
    best = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in best.items():
        shares = f"{speed / best['memory']:.2f},{speed / best['loop']:.2f}"
        print(f"{name},{speed:.1f},{shares}")


if __name__ == "__main__":
    main()
