from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime import Classifier, InputError, ModelCard
from ffd_runtime.core.errors import BackendError, DeviceMemoryError
from ffd_runtime.core.pipeline import classify_items, prepare_views
from ffd_runtime.image.faces import Face
from ffd_runtime.inputs import Item
from ffd_runtime.model.backends import Outputs
from ffd_runtime.model.within_memory import WithinMemory

from ..conftest import picture
from ..models import CARD
from ..videos import moving, write_video


@pytest.fixture
def classifier(colour_model: Path) -> Iterator[Classifier]:
    with Classifier.open(colour_model, device="cpu", batch=4, workers=2) as opened:
        yield opened


def test_paths_and_arrays_agree(classifier: Classifier, portraits: Path) -> None:
    for path in sorted(portraits.iterdir()):
        by_path = classifier.classify(path)
        by_array = classifier.classify(np.asarray(cv2.imread(str(path))))
        assert by_path.source == str(path)
        assert by_path.score == by_array.score
        assert by_path.label == ("generated" if "red" in path.name else "groundtruth")


def test_a_file_that_cannot_be_read_raises(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        classifier.classify(tmp_path / "absent.jpg")
    assert caught.value.code == "not_found"


def test_folders_give_rows_in_order(classifier: Classifier, portraits: Path) -> None:
    (portraits / "1-broken.jpg").write_bytes(b"\xff\xd8\xff")
    rows = list(classifier.classify_files(portraits, "absent"))
    assert [Path(row.source).name for row in rows] == [
        "0-red.png",
        "1-blue.png",
        "1-broken.jpg",
        "2-red.png",
        "absent",
    ]
    assert [row.label for row in rows] == ["generated", "groundtruth", None, "generated", None]
    assert [row.error.code for row in rows if row.error] == ["truncated", "not_found"]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_no_row_is_lost_or_doubled(
    colour_model: Path, portraits: Path, batch: int, count: int
) -> None:
    files = sorted(map(str, portraits.iterdir()))
    names = [files[i % 3] if i % 4 else f"absent-{i}" for i in range(count)]
    with Classifier.open(colour_model, batch=batch) as opened:
        rows = list(opened.classify_items(Item(name) for name in names))
    assert [row.source for row in rows] == names
    assert [row.error is not None for row in rows] == [not i % 4 for i in range(count)]


def test_errors_of_an_endless_source_are_yielded(classifier: Classifier) -> None:
    endless = (Item(f"absent-{i}") for i in iter(int, 1))
    rows = classifier.classify_items(endless)
    assert [next(rows).source for _ in range(100)] == ["absent-0"] * 100


def test_threads_share_a_classifier(classifier: Classifier, portraits: Path) -> None:
    path = portraits / "0-red.png"
    scores: list[float | None] = []

    def work() -> None:
        for _ in range(5):
            scores.append(classifier.classify(path).score)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scores) == 20
    assert len(set(scores)) == 1


def test_no_thread_is_left(classifier: Classifier, portraits: Path) -> None:
    before = threading.active_count()
    rows = classifier.classify_files(portraits)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("ffd-"):
            thread.join(5)
    assert threading.active_count() == before


def test_opencv_uses_one_thread_while_workers_decode(
    classifier: Classifier, portraits: Path
) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        rows = classifier.classify_files(portraits)
        next(rows)
        assert cv2.getNumThreads() == 1
        list(rows)
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_source_that_fails_ends_the_run(classifier: Classifier, portraits: Path) -> None:
    def items() -> Iterator[Item]:
        yield Item(str(portraits / "0-red.png"))
        raise OSError("the list is broken")

    rows = classifier.classify_items(items())
    assert next(rows).label == "generated"
    with pytest.raises(OSError, match="the list is broken"):
        next(rows)


def test_a_waiting_source_does_not_delay_earlier_rows(
    classifier: Classifier, portraits: Path
) -> None:
    answered = threading.Event()

    def items() -> Iterator[Item]:
        yield Item(str(portraits / "0-red.png"))
        # A program that names the next file only after the verdict on this one.
        assert answered.wait(60)
        yield Item(str(portraits / "1-blue.png"))

    rows = classifier.classify_items(items())
    assert next(rows).label == "generated"
    answered.set()
    assert [row.label for row in rows] == ["groundtruth"]


class Broken:
    """A backend that returns NaN."""

    card: ModelCard = CARD
    description = "broken"

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        n = len(images)
        return Outputs(np.full((n, 2), np.nan, np.float32), np.zeros((n, 1, 1), np.float32))

    def close(self) -> None:
        pass


def test_a_nan_score_is_an_error_row(portraits: Path) -> None:
    items = [Item(str(path)) for path in portraits.iterdir()]
    rows = list(classify_items(items, Broken(), batch=2, workers=1))
    assert [row.error.code for row in rows if row.error] == ["bad_output"] * 3
    with pytest.raises(InputError, match="instead of a probability"):
        Classifier(Broken()).classify(picture())


class Small:
    """A backend whose device holds `most` images; it records its batches."""

    card: ModelCard = CARD
    description = "small"

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[int] = []

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        self.batches.append(len(images))
        if len(images) > self.most:
            raise DeviceMemoryError("out of memory")
        score = images.mean((1, 2, 3), dtype=np.float64).astype(np.float32) / 255
        return Outputs(np.stack([score, 1 - score], 1), images[:, :2, :2, 0].astype(np.float32))

    def close(self) -> None:
        pass


def test_a_full_device_gets_smaller_batches(portraits: Path, tmp_path: Path) -> None:
    items = [Item(str(path)) for path in sorted(portraits.iterdir())] * 5
    whole, small = Small(8), Small(3)
    expected = list(classify_items(items, whole, batch=8, workers=2))
    rows = list(classify_items(items, small, batch=8, workers=2))
    assert rows == expected
    # Halved until it fits, and never tried larger again.
    assert small.batches[:3] == [8, 4, 2]
    assert max(small.batches[3:]) == 2
    with pytest.raises(DeviceMemoryError):
        list(classify_items(items, Small(0), batch=8, workers=2))


def test_a_batch_stays_halved_for_the_life_of_a_classifier(
    portraits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = Small(3)
    classifier = Classifier(small, batch=8, workers=2)
    pictures = sorted(portraits.iterdir())
    for _ in range(3):
        list(classifier.classify_files(portraits))
        classifier.classify(pictures[0])
        classifier.predict(np.zeros((8, 299, 299, 3), np.uint8))
    failed = [count for count in small.batches if count > small.most]
    assert sorted(failed, reverse=True) == failed
    assert len(failed) == len(caplog.records) <= 2
    assert max(small.batches[small.batches.index(failed[-1]) + 1 :]) <= 2


def test_threads_whose_batches_fail_together_halve_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = threading.Barrier(2)

    class Together(Small):
        def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
            if len(images) > self.most:
                both.wait(10)
            return super().infer(images)

    small = Together(4)
    backend = WithinMemory(small)
    images = np.zeros((8, 299, 299, 3), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(backend.infer, [images, images]))
    assert sorted(small.batches) == [4, 4, 4, 4, 8, 8]
    assert [len(output.probability) for output in outputs] == [8, 8]
    assert [record.message for record in caplog.records] == [
        "out of memory; continuing with batches of at most 4"
    ]


def test_rows_contain_heatmaps_and_files_on_request(
    classifier: Classifier, portraits: Path
) -> None:
    path = str(portraits / "0-red.png")
    (plain,) = classifier.classify_items([Item(path)])
    (shown,) = classifier.classify_items([Item(path)], keep_encoded=True)
    assert plain == shown
    assert plain.encoded is None
    assert shown.encoded == Path(path).read_bytes()
    assert shown.heatmap is not None
    assert shown.score is not None
    assert 1 / (1 + np.exp(-shown.heatmap.mean())) == pytest.approx(shown.score, abs=1e-4)
    assert not {"heatmap", "encoded"} & set(shown.to_dict())


def test_a_worker_that_dies_ends_the_run(classifier: Classifier, portraits: Path) -> None:
    def die() -> bytes:
        raise SystemExit("a library called exit")

    rows = classifier.classify_items([Item(str(portraits / "0-red.png")), Item("x", fetch=die)])
    with pytest.raises(SystemExit):
        list(rows)


def test_many_paths_are_classified_in_order(classifier: Classifier, portraits: Path) -> None:
    paths = sorted(path for path in portraits.iterdir() if path.suffix in (".jpg", ".png"))
    rows = list(classifier.classify_many(reversed(paths)))
    assert [row.source for row in rows] == [str(path) for path in reversed(paths)]
    assert [row.label for row in rows] == [classifier.classify(path).label for path in paths][::-1]


def test_many_paths_may_be_a_single_one(classifier: Classifier, portraits: Path) -> None:
    for single in (portraits, str(portraits)):
        assert len(list(classifier.classify_many(single))) == 3


def test_a_video_is_classified_frame_by_frame(classifier: Classifier, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", moving(6))
    rows = list(classifier.stream(str(clip)))
    assert [row.frame for row in rows] == list(range(6))
    assert all(row.score is not None and row.to_dict()["source"] == str(clip) for row in rows)


def test_a_stream_ends_when_the_loop_is_left(classifier: Classifier, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", moving(30))
    before = threading.active_count()
    rows = classifier.stream(str(clip))
    assert next(rows).frame == 0
    rows.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before + 1


def test_asyncio_classifies_beside_other_work(classifier: Classifier, portraits: Path) -> None:
    import asyncio

    path = next(portraits.glob("*.png"))
    assert asyncio.run(classifier.classify_async(path)) == classifier.classify(path)


def test_a_detector_that_is_none_is_refused(colour_model: Path) -> None:
    with pytest.raises(TypeError, match=r"must be a FaceDetector, not 'yunet\.onnx'"):
        Classifier.open(colour_model, device="cpu", detector="yunet.onnx")  # type: ignore[arg-type]


def test_parallel_runs_restore_the_threads_of_opencv(
    classifier: Classifier, portraits: Path
) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = (classifier.classify_many(portraits) for _ in range(2))
        pairs = list(zip(first, second, strict=True))
        assert len(pairs) == 3
        assert cv2.getNumThreads() == 3
        next(third := classifier.classify_many(portraits))
        assert cv2.getNumThreads() == 1
        third.close()  # type: ignore[attr-defined]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_a_stream_beside_a_run_restores_the_threads_of_opencv(
    classifier: Classifier, portraits: Path, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "clip.avi", moving(4))
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = (classifier.stream(str(clip)) for _ in range(2))
        next(first)
        next(second)
        next(third := classifier.classify_many(portraits))
        first.close()  # type: ignore[attr-defined]
        assert cv2.getNumThreads() == 1
        second.close()  # type: ignore[attr-defined]
        third.close()  # type: ignore[attr-defined]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff" + bytes(1000), b"text"])
def test_the_bytes_of_an_unreadable_file_are_freed(content: bytes) -> None:
    """At once: a traceback in a cycle would keep them until the garbage is collected."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(content)
        (view,) = prepare_views(Item("x", fetch=lambda: content), CARD.preprocess)
        assert isinstance(view.image, InputError)
        assert sys.getrefcount(content) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_only_preprocessed_images_are_predicted(colour_model: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    image = np.zeros((2, 299, 299, 3), np.uint8)
    with Classifier.open(colour_model, device="cpu", backend=backend) as opened:
        for wrong in (image / np.float32(255), image > 1, image[:0], image[:, :98], image[0]):
            with pytest.raises(BackendError, match=r"images must be uint8 \[N, 299, 299, 3\]"):
                opened.predict(wrong)  # type: ignore[arg-type]
        assert len(opened.predict(image).probability) == 2


def test_a_dash_is_a_file_in_python(
    classifier: Classifier, portraits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(portraits)
    assert [row.error and row.error.code for row in classifier.classify_many("-")] == ["not_found"]
    (portraits / "0-red.png").rename("-")
    assert [row.label for row in classifier.classify_many("-")] == ["generated"]


@pytest.mark.parametrize("name", ["batch", "workers", "max_pixels"])
@pytest.mark.parametrize("value", [0, -5, 1.5, "9"])
def test_invalid_limits_are_refused(colour_model: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        Classifier.open(colour_model, device="cpu", **{name: value})


def test_faces_need_a_detector(classifier: Classifier, portraits: Path) -> None:
    with pytest.raises(ValueError, match="detector='auto'"):
        classifier.classify_faces(next(portraits.glob("*.png")))


def test_everything_of_the_guide_comes_from_the_top_level() -> None:
    import re

    import ffd_runtime

    guide = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert not re.findall(r"from ffd_runtime\.", guide)
    assert all(getattr(ffd_runtime, name) for name in ffd_runtime.__all__)


def test_each_face_of_an_image_is_classified(classifier: Classifier, portraits: Path) -> None:
    class TwoFaces:
        def detect(self, image: npt.NDArray[np.uint8]) -> list[Face]:
            marks = np.zeros((5, 2), np.float32)
            return [Face((8, 8, 80, 80), 0.9, marks), Face((40, 40, 60, 60), 0.8, marks)]

    classifier.detector = TwoFaces()  # type: ignore[assignment]
    path = next(portraits.glob("*.png"))
    results = classifier.classify_faces(path)
    assert [result.box for result in results] == [(8, 8, 80, 80), (40, 40, 60, 60)]
    assert all(result.source == str(path) and result.label for result in results)
    pixels = cv2.imread(str(path))
    assert pixels is not None
    assert [row.score for row in classifier.classify_faces(pixels)] == [
        result.score for result in results
    ]
