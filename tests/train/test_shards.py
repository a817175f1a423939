from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.dataset import FaceDataset
from ffd_train.face_data import FaceData
from ffd_train.prepare.entries import Input
from ffd_train.prepare.preparing import Settings, prepare
from ffd_train.scanning import find_labelled, list_samples, scan
from ffd_train.shards import READ_AHEAD_BYTES, ShardReader

from ..conftest import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Split folders with single files."""
    root = tmp_path_factory.mktemp("folder")
    for number in range(60):
        split = ("train", "train", "train", "val", "test")[number % 5]
        label, colour = (("generated", "red"), ("groundtruth", "blue"))[number % 2]
        path = root / split / label / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.ascontiguousarray(picture(colour, 40, 40, seed=number)))
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files in shards of five images."""
    output = tmp_path_factory.mktemp("packed") / "out"
    settings = Settings(match=False, shard_images=5)
    prepare([Input(folder)], output, settings, 2, lambda _: None, lambda *_: lambda: None)
    return output


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_shards_have_the_images_of_the_folder(folder: Path, packed: Path) -> None:
    single, shards = scan(folder), scan(packed)
    assert len(shards.samples) == 60
    for split, count in (("train", 36), ("val", 12), ("test", 12)):
        one = FaceDataset(single, single.split(split), PreprocessSpec())
        two = FaceDataset(shards, shards.split(split), PreprocessSpec())
        place = {sample.sha256: n for n, sample in enumerate(single.split(split))}
        assert len(one) == len(two) == count
        for n, sample in enumerate(shards.split(split)):
            pixels, label = one[place[sample.sha256]]
            assert torch.equal(two[n][0], pixels)
            assert two[n][1] == label
    numbers = [sample.shard for sample in shards.samples]
    assert set(numbers) == set(range(14))
    assert numbers == sorted(numbers, key=lambda number: number or 0)


def test_evaluation_reads_shards(packed: Path, colour_model: Path) -> None:
    from ffd_runtime.model.backends import open_backend

    data = find_labelled(packed)
    assert {sample.split for sample in data.samples} == {"test"}
    assert len(find_labelled(packed, "train").samples) == 36
    with Classifier(open_backend(colour_model)) as classifier:
        results = list(classifier.classify_items(data.item(s) for s in data.samples))
    for sample, result in zip(data.samples, results, strict=True):
        assert result.source == str(packed / sample.path)
        assert result.label == ("generated", "groundtruth")[sample.label]


def test_an_empty_split_is_an_error(folder: Path, tmp_path: Path) -> None:
    classes = ("generated", "groundtruth")
    inputs = [Input(folder / "train" / label, label) for label in classes]
    settings = Settings(match=False, split=(80, 20, 0))
    prepare(inputs, tmp_path / "out", settings, 2, lambda _: None, lambda *_: lambda: None)
    with pytest.raises(DataError, match=r"no images in test \(it has train, val\): choose --split"):
        find_labelled(tmp_path / "out")
    assert find_labelled(tmp_path / "out", "val").samples


def test_finding_reads_no_picture(copy: Path) -> None:
    before = scan(copy).manifest_sha256
    for path in copy.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert scan(copy).manifest_sha256 == before
    assert len(list_samples(copy).samples) == 60


def test_damaged_shards_are_detected(copy: Path) -> None:
    data = scan(copy)
    sample = data.samples[7]
    path = copy / sample.path.split("!/")[0]
    whole = path.read_bytes()
    middle = sample.offset + sample.size // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    fresh = scan(copy)
    with pytest.raises(InputError, match="has changed since it was packed"):
        fresh.read(sample)
    assert fresh.read(data.samples[5])
    path.write_bytes(whole[:middle])
    with pytest.raises(DataError, match=rf"{path.name} has {middle} bytes instead of"):
        scan(copy)
    # The shard is truncated while in use.
    with pytest.raises(InputError, match="ends early"):
        fresh.read(sample)
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        scan(copy)
    # A spawned worker unpickles the reader, and opens its own files.
    spawned: FaceData = pickle.loads(pickle.dumps(fresh))
    assert spawned.read(data.samples[-1]) == data.read(data.samples[-1])
    with pytest.raises(InputError) as raised:
        spawned.read(sample)
    assert raised.value.code == "not_found"


def test_an_index_that_was_changed_is_refused(copy: Path) -> None:
    manifest, document = copy / "manifest.csv", copy / "dataset.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(",generated,", ",groundtruth,", 1))
    with pytest.raises(DataError, match=r"manifest.csv has changed since it was packed"):
        scan(copy)
    manifest.unlink()
    with pytest.raises(DataError, match="cannot read .*manifest.csv: No such file"):
        scan(copy)
    manifest.write_text(text)
    known = json.loads(document.read_text())
    for broken in ("{", "[]", json.dumps({**known, "shards": [{"name": "x"}]})):
        document.write_text(broken)
        with pytest.raises(DataError, match="is damaged or not from ffd-data prepare"):
            scan(copy)
    document.write_text(json.dumps({**known, "schema": 2}))
    with pytest.raises(DataError, match="has schema 2, and this version reads 1"):
        scan(copy)


def test_processes_and_threads_read_concurrently(packed: Path) -> None:
    data = scan(packed)
    expected = [data.read(sample) for sample in data.samples]
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(data.read, [data.samples[n % 60] for n in range(1200)])
        assert all(one == expected[n % 60] for n, one in enumerate(read))
    dataset = FaceDataset(data, data.samples, PreprocessSpec())
    alone = [dataset[n][0] for n in range(60)]
    # The open descriptors are inherited by the workers.
    loader = DataLoader(dataset, batch_size=10, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([pixels for pixels, _ in loader]), torch.stack(alone))


def test_many_shards_do_not_use_up_the_descriptors(tmp_path: Path) -> None:
    import hashlib

    from ffd_train import shards

    names = tuple(f"{number}.tar" for number in range(2 * shards.MAX_OPEN_SHARDS))
    for name in names:
        (tmp_path / name).write_text(name)
    reader = ShardReader(tmp_path, names)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for number, name in [*enumerate(names), *enumerate(names)]:
        digest = hashlib.sha256(name.encode()).hexdigest()
        assert reader.read(number, 0, len(name), digest) == name.encode()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + shards.MAX_OPEN_SHARDS
        del reader
        assert len(os.listdir("/proc/self/fd")) <= before


def test_without_positional_reading_threads_do_not_mix(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Like on Windows.
    monkeypatch.delattr(os, "pread")
    seek = os.lseek

    def seek_slowly(descriptor: int, offset: int, whence: int) -> None:
        seek(descriptor, offset, whence)
        time.sleep(0.001)

    monkeypatch.setattr(os, "lseek", seek_slowly)
    data = scan(packed)
    few = [sample for sample in data.samples if sample.shard == 0]
    with ThreadPoolExecutor(8) as pool:
        # The bytes are compared with their sha256.
        assert all(pool.map(data.read, few * 20))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a system without such advice")
def test_each_piece_of_a_shard_is_prefetched_once_per_epoch(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    advise = os.posix_fadvise

    def note(descriptor: int, offset: int, size: int, advice: int) -> None:
        asked.append((offset, offset + size))
        advise(descriptor, offset, size, advice)

    monkeypatch.setattr(os, "posix_fadvise", note)
    data = scan(packed)
    for sample in data.samples:
        if sample.shard == 0:
            data.read(sample)
    once = sorted(set(asked))
    assert len(asked) <= 2 * len(once)
    assert once[0][0] == 0
    assert once[-1][1] == READ_AHEAD_BYTES
    assert all(one[1] == two[0] for one, two in pairwise(once))
    # The next epoch prefetches again, with the same reader.
    asked.clear()
    for sample in data.samples:
        if sample.shard == 0:
            data.read(sample)
    assert set(asked) == set(once)
