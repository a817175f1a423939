"""Animations: only one frame is classified, so `groundtruth` would be a guess about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from ffd_runtime import Classifier
from ffd_runtime.image.faces import Face
from ffd_runtime.image.image_header import read_header

from ..conftest import picture
from .encoded import pillow

RED, BLUE = (Pillow.fromarray(picture(colour)[..., ::-1]) for colour in ("red", "blue"))
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    # Viewers show only the frames of the animation, not the image before them.
    "hidden": ("PNG", {"default_image": True}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {}),
}


def animate(name: str, *frames: Any) -> bytes:
    form, options = FORMS[name]
    return pillow(frames[0], form, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("name", FORMS)
def test_a_photograph_with_other_frames_is_unsure(
    name: str, colour_model: Path, tmp_path: Path
) -> None:
    paths = tmp_path / "blue.img", tmp_path / "red.img", tmp_path / "still.img"
    paths[0].write_bytes(animate(name, BLUE, RED))
    paths[1].write_bytes(animate(name, RED, BLUE))
    paths[2].write_bytes(pillow(BLUE, FORMS[name][0]))
    with Classifier.open(colour_model, device="cpu") as classifier:
        results = list(classifier.classify_files(*paths))
        assert [(result.label, result.reason) for result in results] == [
            ("unsure", "animation"),
            ("generated", None),
            ("groundtruth", None),
        ]
        assert all(result.score is not None for result in results)
        assert [classifier.classify(path).label for path in paths] == [r.label for r in results]


def test_faces_of_an_animation_are_unsure(colour_model: Path, tmp_path: Path) -> None:
    class Detector:
        def detect(self, _: Any) -> list[Face]:
            landmarks = np.zeros((5, 2), np.float32)
            return [
                Face((0, 0, 100, 100), 0.9, landmarks),
                Face((0, 0, 90, 90), 0.8, landmarks, reason="small"),
            ]

    path = tmp_path / "a.png"
    path.write_bytes(animate("png", BLUE, RED))
    detector: Any = Detector()
    with Classifier.open(colour_model, device="cpu", detector=detector) as classifier:
        for results in (list(classifier.classify_files(path)), classifier.classify_faces(path)):
            assert [result.reason for result in results] == ["animation", "small"]
            assert [result.label for result in results] == ["unsure", "unsure"]


@pytest.mark.parametrize("name", FORMS)
def test_stills_are_no_animations(name: str) -> None:
    assert not read_header(pillow(RED, FORMS[name][0])).animated


def test_an_animation_of_one_frame_is_a_still() -> None:
    data = animate("png", RED, BLUE)
    assert read_header(data).animated
    assert not read_header(data.replace(b"acTL\0\0\0\2", b"acTL\0\0\0\1")).animated
    hidden = animate("hidden", BLUE, RED)
    assert read_header(hidden.replace(b"acTL\0\0\0\2", b"acTL\0\0\0\1")).animated


@pytest.mark.parametrize("rest", [b"", b";", b"\0" * 300_000, b"\x21\xff", b"\x2c" + bytes(20)])
def test_what_follows_a_gif_is_no_error(rest: bytes) -> None:
    still = pillow(RED, "GIF").rstrip(b";")
    assert read_header(still + rest).animated == rest.startswith(b"\x2c")
