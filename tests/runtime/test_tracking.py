from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.core.results import Box, Result, Track
from ffd_runtime.model.card import ModelCard, Provenance
from ffd_runtime.video.tracking import FIRST_MARGIN_LOG_ODDS, MIN_MARGIN_LOG_ODDS, GreedyIouTracker

from ..nightly import examples

CARD = ModelCard("m", "tf_efficientnet_lite0", Provenance("0"), threshold=0.2, unsure=(0.1, 0.6))
FACE = (100, 100, 80, 100)
BOXES = st.tuples(*[st.integers(-50, 400)] * 2, *[st.integers(0, 200)] * 2)


def seen(face: Box | None = FACE, score: float | None = 0.9, **fields: Any) -> Result:
    return Result("door", face=face, label="unsure", score=score, **fields)


def tracks(tracker: GreedyIouTracker, results: Sequence[Result], at: float) -> list[Track]:
    answer = tracker.update(results, at)
    given = [track for result in answer if (track := result.track)]
    assert len(given) == len(results)
    return given


def numbers(tracker: GreedyIouTracker, faces: Sequence[Box], at: float) -> list[int]:
    return [track.number for track in tracks(tracker, [seen(face) for face in faces], at)]


def labels(tracker: GreedyIouTracker, scores: Sequence[float], fps: float = 10) -> list[str]:
    return [
        tracks(tracker, [seen(score=score)], number / fps)[0].label
        for number, score in enumerate(scores)
    ]


def flips(said: Sequence[str]) -> int:
    return sum(one != other for one, other in pairwise(said))


def probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def test_moving_and_growing_face_keeps_its_number() -> None:
    tracker = GreedyIouTracker(CARD)
    for frame in range(60):
        face = (100 + 8 * frame, 100 + 2 * frame, 80 + frame, 100 + frame)
        assert numbers(tracker, [face], frame / 10) == [1]


def test_only_the_track_of_a_result_changes() -> None:
    result = seen(reason="blurred", frame=7, time=3.5)
    answer = GreedyIouTracker(CARD).update([result], 3.5)[0]
    assert {**answer.to_dict(), "track": None} == result.to_dict()


def test_face_that_jumps_gets_a_new_number() -> None:
    tracker = GreedyIouTracker(CARD)
    assert numbers(tracker, [FACE], 0) == [1]
    assert numbers(tracker, [(300, 100, 80, 100)], 0.1) == [2]
    # A new face at the position of the first one gets its number.
    assert numbers(tracker, [FACE], 0.2) == [1]


def test_numbers_do_not_depend_on_the_order_of_faces() -> None:
    tracker = GreedyIouTracker(CARD)
    row = [(150 * place, 50, 80, 100) for place in range(6)]
    assert numbers(tracker, row, 0) == [1, 2, 3, 4, 5, 6]
    assert numbers(tracker, row[::-1], 0.1) == [6, 5, 4, 3, 2, 1]
    assert numbers(tracker, [row[4], row[1]], 0.2) == [5, 2]


def test_two_faces_have_different_numbers() -> None:
    tracker = GreedyIouTracker(CARD)
    numbers(tracker, [FACE], 0)
    x, y, width, height = FACE
    assert numbers(tracker, [(x + 15, y, width, height), FACE], 0.1) == [2, 1]


@pytest.mark.parametrize("fps", [5, 10, 25])
@pytest.mark.parametrize("hidden", [False, True])
def test_faces_that_pass_each_other_keep_their_numbers(fps: int, hidden: bool) -> None:
    tracker = GreedyIouTracker(CARD)
    rng = np.random.default_rng(0)
    for frame in range(8 * fps):
        left = round(frame / fps * 80)
        boxes = [(left, 100, 80, 100), (640 - left, 120, 80, 100)]
        boxes = [(x + int(rng.integers(-2, 3)), y, w, h) for x, y, w, h in boxes]
        # A face is not detected while more than half of it is hidden.
        visible = boxes[:1] if hidden and abs(2 * left - 640) < 40 else boxes
        assert numbers(tracker, visible, frame / fps) == [1, 2][: len(visible)]


def test_track_is_forgotten_after_a_while() -> None:
    tracker = GreedyIouTracker(CARD, forget=1.5)
    for frame in range(3):
        assert numbers(tracker, [FACE], frame / 10) == [1]
    for frame in range(3, 16):
        assert numbers(tracker, [], frame / 10) == []
    assert numbers(tracker, [FACE], 1.6) == [1]
    for frame in range(17, 33):
        assert numbers(tracker, [], frame / 10) == []
    assert numbers(tracker, [FACE], 3.3) == [2]


def test_tracks_survive_a_low_frame_rate() -> None:
    tracker = GreedyIouTracker(CARD)
    tracker.update([], 0)
    assert [numbers(tracker, [FACE], 2.0 * frame) for frame in range(1, 9)] == [[1]] * 8


@pytest.mark.parametrize("jump", [-0.05, -1000.0, 60.0])
@pytest.mark.parametrize("face", [FACE, None])
def test_jump_of_the_clock_resets_all_tracks(jump: float, face: Box | None) -> None:
    tracker = GreedyIouTracker(CARD)
    for frame in range(20):
        tracker.update([seen(face, 0.99)], 5000 + frame / 10)
    (track,) = tracks(tracker, [seen(face, 0.01)], 5001.9 + jump)
    assert (track.number, track.label) == (2 if face else 1, "groundtruth")
    assert track.score == pytest.approx(0.01)


def test_whole_frame_is_track_1() -> None:
    tracker = GreedyIouTracker(CARD)
    given = [tracks(tracker, [seen(None, 0.9)], at)[0] for at in (0, 0.1, 50, 50.1, 3, 4)]
    assert {(track.number, track.label) for track in given} == {(1, "generated")}


def test_scores_with_a_reason_do_not_count() -> None:
    tracker = GreedyIouTracker(CARD)
    unclear = [
        seen(score=0.99, reason="blurred"),
        Result("door", face=FACE, error=Result.failed("", InputError("empty", "")).error),
    ]
    for at, result in enumerate(unclear):
        assert tracks(tracker, [result], at) == [Track(1, "unsure", None)]
    (track,) = tracks(tracker, [seen(score=0.03)], 2)
    assert track.label == "groundtruth"
    assert track.score == pytest.approx(0.03)
    for at, result in enumerate(unclear, 3):
        assert tracks(tracker, [result], at) == [track]


def test_single_frame_does_not_change_the_label() -> None:
    tracker = GreedyIouTracker(CARD)
    scores = [0.97] * 10 + [0.0] + [0.97] * 20
    assert set(labels(tracker, scores)) == {"generated"}


def test_lasting_change_changes_the_label() -> None:
    said = labels(GreedyIouTracker(CARD), [0.99] * 30 + [0.01] * 60)
    assert said[0] == "generated"
    assert said[-1] == "groundtruth"
    assert flips(said) == 2
    assert said.index("unsure") < 60


def test_weight_of_old_frames_decays() -> None:
    def score_after(half_life: float) -> float:
        tracker = GreedyIouTracker(CARD, half_life=half_life)
        for at in (0.0, 1.0):
            (track,) = tracks(tracker, [seen(score=probability(-3 + 6 * at))], at)
        assert track.score is not None
        return track.score

    # Log-odds of -3 with half the weight of 3.
    assert score_after(1.0) == pytest.approx(probability(1.0))
    assert score_after(0.1) > 0.94
    assert score_after(1e9) == pytest.approx(0.5)


def test_smoothing_does_not_depend_on_the_frame_rate() -> None:
    # Both labels change after about the same time.
    ways = []
    for fps in (5, 25):
        said = labels(GreedyIouTracker(CARD), [0.99] * 10 * fps + [0.01] * 10 * fps, fps)
        ways.append((said.index("unsure") / fps, said.index("groundtruth") / fps))
    assert ways[0] == pytest.approx(ways[1], abs=0.5)


@given(
    st.floats(0, 1).map(lambda score: round(score, 4)),
    st.sampled_from([(0.1, 0.6), (0.5, 0.5), (0.0, 0.5), (0.2, 1.0), (0.0, 1.0), (0.001, 0.9995)]),
)
def test_constant_score_has_its_label_from_the_first_frame(
    score: float, band: tuple[float, float]
) -> None:
    card = CARD.replace(unsure=band, threshold=band[0])
    assert set(labels(GreedyIouTracker(card), [score] * 20)) == {card.verdict(score)}


@settings(max_examples=examples(50))
@given(
    st.sampled_from([0.1, 0.6]),
    st.lists(st.floats(-MIN_MARGIN_LOG_ODDS, MIN_MARGIN_LOG_ODDS), min_size=1, max_size=60),
)
def test_score_near_a_threshold_does_not_flip_the_label(border: float, noise: list[float]) -> None:
    middle = math.log(border / (1 - border))
    said = labels(GreedyIouTracker(CARD), [probability(middle + 0.99 * step) for step in noise])
    # The first frame decides the side.
    assert flips(said) == 0


@pytest.mark.parametrize("mean", [-6, -2.2, -1, 0.4, 3])
def test_independent_noise_flips_the_label_at_most_once(mean: float) -> None:
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(mean, 2, 200)
        assert flips(labels(GreedyIouTracker(CARD), [probability(step) for step in noise])) <= 1


def test_first_frames_need_a_wider_margin() -> None:
    border = math.log(0.6 / 0.4)
    margin, start = FIRST_MARGIN_LOG_ODDS, probability(border + 0.1)
    for below, label in (
        (1.2 * margin, "generated"),
        (2 * margin, "unsure"),
    ):
        assert labels(GreedyIouTracker(CARD), [start, probability(border - below)])[-1] == label


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(BOXES, st.none() | st.floats(0, 1)), max_size=6), st.floats(-0.2, 2)
        ),
        max_size=12,
    )
)
def test_numbers_are_never_reused(
    frames: list[tuple[list[tuple[Box, float | None]], float]],
) -> None:
    tracker, at = GreedyIouTracker(CARD), 0.0
    highest = 0
    for views, gap in frames:
        before, at = at, at + gap
        results = [seen(face, score) for face, score in views]
        answer = tracker.update(results, at)
        assert [result.face for result in answer] == [result.face for result in results]
        given = [result.track.number for result in answer if result.track]
        assert len(set(given)) == len(views)
        new = [number for number in given if number > highest]
        assert new == list(range(highest + 1, highest + 1 + len(new)))
        highest += len(new)
        if at < before:
            assert new == given


def test_state_of_lost_tracks_is_removed() -> None:
    tracker = GreedyIouTracker(CARD)
    rng = np.random.default_rng(0)
    counts = []
    for frame in range(3000):
        boxes = [tuple(map(int, [*rng.integers(0, 4000, 2), 80, 100])) for _ in range(3)]
        tracker.update([seen(box) for box in boxes], frame / 10)  # type: ignore[arg-type]
        if frame in (200, 2999):
            gc.collect()
            counts.append(sum(type(thing).__name__ == "_Track" for thing in gc.get_objects()))
    # Three new faces per frame, each kept for 1.5 s.
    assert max(counts) <= 3 * 16
