from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.results import LABELS, Box, Label, Result, Track
from ffd_runtime.image.draw import PANEL, VERDICT_COLOURS, Colour
from ffd_runtime.video.draw_frame import draw_frame, draw_keys, draw_no_signal, shrink_to_fit
from ffd_runtime.video.frame_result import Frame, FrameResult, State, StreamHealth

from ..nightly import examples

Array = npt.NDArray[np.uint8]
STATES: tuple[State, ...] = ("connecting", "playing", "waiting", "failed", "ended")
FACE = (250, 150, 120, 140)
ALARM = (40, 35, 200)


def seen(face: Box | None = FACE, label: Label = "generated", **values: object) -> Result:
    heatmap = np.full((10, 10), 9, np.float32)
    result = Result("door", 0, face, label, 0.98, heatmap=heatmap)
    return replace(result, **values)  # type: ignore[arg-type]


def frame_result(
    *results: Result, width: int = 640, height: int = 480, name: str = "door", **health: object
) -> FrameResult:
    image = np.full((height, width, 3), 128, np.uint8)
    image.setflags(write=False)
    well = StreamHealth(name, True, "playing", size=(width, height), fps=25.0, age=0.04)
    frame = Frame(name, 0, image, 10.0, 1.7e9)
    return FrameResult(frame, results, replace(well, **health))  # type: ignore[arg-type]


def draw(one: FrameResult, heatmap: bool = False) -> Array:
    return draw_frame(one, heatmap=heatmap, face_scale=1.3)


def count(image: Array, colour: Colour) -> int:
    return int((image == colour).all(axis=2).sum())


def test_input_frame_is_not_changed() -> None:
    one = frame_result(seen())
    drawn = draw(one, heatmap=True)
    assert (one.frame.image == 128).all()
    assert drawn.shape == (480, 640, 3)
    assert (drawn != 128).any()


def test_box_has_the_label_colour_and_does_not_cover_the_face() -> None:
    x, y, width, height = FACE
    for label in LABELS:
        drawn = draw(frame_result(seen(label=label)))
        assert count(drawn, VERDICT_COLOURS[label]) > 100
        assert (drawn[y + 40 : y + height - 40, x + 5 : x + width - 5] == 128).all()
        for other in set(LABELS) - {label}:
            assert not count(drawn, VERDICT_COLOURS[other])


def test_label_of_the_track_is_shown() -> None:
    drawn = draw(frame_result(seen(label="generated", track=Track(1, "groundtruth", 0.03))))
    assert count(drawn, VERDICT_COLOURS["groundtruth"])
    assert not count(drawn, VERDICT_COLOURS["generated"])
    first = draw(frame_result(seen(label="unsure", reason="small", track=Track(1, "unsure", None))))
    assert count(first, VERDICT_COLOURS["unsure"])


def test_reason_is_shown() -> None:
    track = Track(1, "unsure", 0.5)
    plain = draw(frame_result(seen(track=track)))
    small = draw(frame_result(seen(track=track, reason="small")))
    blurred = draw(frame_result(seen(track=track, reason="blurred")))
    panels = [count(image, PANEL) for image in (plain, small, blurred)]
    assert panels[0] + 300 < panels[1] < panels[2]


@pytest.mark.parametrize("gap", [10, 40])
def test_labels_of_adjacent_faces_do_not_overlap(gap: int) -> None:
    def labels(*lefts: int) -> int:
        faces = [seen((left, 200, 50, 60)) for left in lefts]
        return count(draw(frame_result(*faces))[:440], PANEL)

    near = labels(200, 250 + gap, 300 + 2 * gap)
    assert near == pytest.approx(labels(40, 250, 460), rel=0.02)


def test_label_does_not_cover_another_face() -> None:
    drawn = draw(frame_result(seen((200, 100, 80, 80)), seen((200, 190, 80, 80))))
    for top in (100, 190):
        assert (drawn[top + 5 : top + 75, 222:258] == 128).all()


def test_label_of_a_face_at_the_edge_is_complete() -> None:
    middle = count(draw(frame_result(seen()))[:440], PANEL)
    for left, top in ((-40, -30), (600, -30), (-40, 420), (560, 400), (0, 0)):
        drawn = draw(frame_result(seen((left, top, 120, 140))))
        assert count(drawn[:455], PANEL) > 0.6 * middle


@settings(max_examples=examples(80), deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.lists(
        st.tuples(
            st.integers(-100, 800),
            st.integers(-100, 800),
            st.integers(1, 500),
            st.integers(1, 500),
        ),
        max_size=4,
    ),
    st.sampled_from(STATES),
    st.text(max_size=40),
)
def test_any_result_can_be_drawn(
    width: int, height: int, faces: list[Box], state: State, name: str
) -> None:
    one = frame_result(
        *map(seen, faces), width=width, height=height, name=name, state=state, error=name
    )
    for heatmap in (False, True):
        drawn = draw(one, heatmap=heatmap)
        factor = drawn.shape[0] // height
        assert drawn.shape == (height * factor, width * factor, 3)
        assert drawn.dtype == np.uint8
    assert draw_no_signal((width, height), one.health).shape == (height, width, 3)
    assert max(shrink_to_fit(one, 320, 200).frame.image.shape) <= 320


def test_text_is_legible_at_every_frame_size() -> None:
    for width, height in ((64, 48), (640, 480), (1920, 1080), (4096, 2160)):
        drawn = draw(
            frame_result(seen((width // 3, height // 3, 20, 20)), width=width, height=height)
        )
        # Rows with the colour of text: on the label and on the strip.
        white = (drawn.min(axis=2) > 200).any(axis=1)
        assert 18 <= white.sum() < 0.12 * drawn.shape[0] + 10
        assert drawn.shape[0] >= 192


def test_heatmap_is_drawn_on_request() -> None:
    one = frame_result(seen(), seen((20, 20, 60, 60), heatmap=None))
    plain, shown = draw(one), draw(one, heatmap=True)
    centre = (FACE[1] + 70, FACE[0] + 60)
    assert (plain[centre] == 128).all()
    assert shown[centre][2] > 140 > 128 > shown[centre][0]
    assert (plain[:90, :110] == shown[:90, :110]).all()


def test_whole_frame_has_a_marked_square_with_its_label() -> None:
    drawn = draw(frame_result(seen(None)))
    # The square of 480 pixels starts at x = 80.
    assert tuple(drawn[0, 90]) == VERDICT_COLOURS["generated"]
    assert tuple(drawn[50, 80]) == VERDICT_COLOURS["generated"]
    assert (drawn[200:300, 100:500] == 128).all()
    assert count(drawn[:100], PANEL) > 1000


def test_failed_source_has_a_red_strip() -> None:
    for state in STATES:
        red = count(draw(frame_result(state=state)), ALARM)
        assert (red > 500) == (state not in ("playing", "ended")), state


def test_long_name_leaves_space_for_facts() -> None:
    short, long = (draw(frame_result(name=name)) for name in ("door", "日本 Tür \x1b[31m" * 30))
    assert (short[:, 440:] == long[:, 440:]).all()
    assert (short[:, :200] != long[:, :200]).any()


def test_strip_shows_the_facts() -> None:
    pictures = [
        draw(frame_result(**facts))
        for facts in ({}, {"fps": 7.5}, {"age": 1.5}, {"age": None}, {"dropped": 12})
    ]
    for number, one in enumerate(pictures):
        for other in pictures[:number]:
            assert (one[455:] != other[455:]).any()


def test_shrunk_frame_has_scaled_faces() -> None:
    one = frame_result(seen((400, 200, 100, 60)), seen(None), width=1280, height=720)
    small = shrink_to_fit(one, 640, 640)
    assert small.frame.image.shape == (360, 640, 3)
    assert [result.face for result in small.results] == [(200, 100, 50, 30), None]
    assert shrink_to_fit(one, 1280, 720) is one


def test_notice_shows_the_reason() -> None:
    waiting = StreamHealth("door", True, "waiting", "the server refused it", next_try=3.2)
    pictures = [
        draw_no_signal((320, 240), health)
        for health in (
            waiting,
            replace(waiting, source="yard"),
            replace(waiting, error="it hangs"),
            replace(waiting, next_try=9.0),
            replace(waiting, state="failed"),
            StreamHealth("door", True, "connecting"),
            StreamHealth("door", True, "ended"),
        )
    ]
    for number, one in enumerate(pictures):
        assert (count(one, ALARM) > 100) == (number < 5)
        for other in pictures[:number]:
            assert (one != other).any()


def test_list_of_keys_fits_into_any_picture() -> None:
    draw_keys(np.zeros((1, 1, 3), np.uint8), {"q": "quit"})
    for width, height in ((60, 40), (640, 480), (1920, 1080)):
        image = np.full((height, width, 3), 128, np.uint8)
        draw_keys(image, {"q": "quit", "h": "heatmap"})
        assert (image != 128).any()
