"""Draw frames for people: faces with labels, and the state of their source."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from ..core.results import LABEL_NAMES, Box, Label, Result
from ..core.text import printable
from ..image import draw
from ..image.decode import Image
from ..image.preprocess import classified_square
from .frame_result import Frame, FrameResult, StreamHealth

_Whole = npt.NDArray[np.int64]

# BGR; darker than the colour of `generated`, and always used with text.
_ALARM_COLOUR: draw.Colour = (40, 35, 200)
_MUTED_COLOUR: draw.Colour = (190, 185, 182)

_STATE_TITLES = {
    "connecting": "connecting",
    "playing": "waiting for a frame",
    "waiting": "no signal",
    "failed": "no signal",
    "ended": "ended",
}


def draw_frame(frame_result: FrameResult, *, heatmap: bool = False, face_scale: float) -> Image:
    """Draw a box and a label for each face, and a status strip with the state of the source.

    Args:
        frame_result: its image is not changed.
        heatmap: draw the heatmap over the squares that were classified.
        face_scale: the card's `preprocess.face_scale`.

    Returns:
        A new image, uint8 [k * height, k * width, 3], BGR. The integer k enlarges images that are
        too small to read, as in `draw_verdict`; otherwise it is 1.
    """
    out = frame_result.frame.image.copy()
    for result in frame_result.results if heatmap else ():
        if result.heatmap is not None:
            draw.lay_heatmap(out, result.heatmap, result.face, face_scale)
    factor = draw.enlargement(out)
    if factor > 1:
        out = _resize(out, out.shape[1] * factor, out.shape[0] * factor)
    capital = max(9.0, 0.022 * min(out.shape[:2]))
    stroke = max(1, round(capital / 7))
    left, top, side = classified_square(out)
    whole = (left, top, side, side)
    boxes = [
        _scaled(result.face, factor) if result.face else whole for result in frame_result.results
    ]
    for (left, top, width, height), result in zip(boxes, frame_result.results, strict=True):
        arm = max(4 * stroke, min(width, height) // 5)
        colour = draw.VERDICT_COLOURS[_verdict(result)[0]]
        draw.mark_corners(out, (left, top, width, height), arm, stroke, colour)
    bottom = _draw_strip(out, frame_result.frame, frame_result.health, capital)
    _draw_labels(out[:bottom], boxes, frame_result.results, capital)
    return out


def shrink_to_fit(frame_result: FrameResult, width: int, height: int) -> FrameResult:
    """Shrink a frame before drawing, so that text on it stays legible.

    Returns:
        A copy of at most `width` times `height` pixels, with the faces scaled alike; the same
        object if it already fits.
    """
    down, across = frame_result.frame.image.shape[:2]
    share = min(width / across, height / down)
    if share >= 1:
        return frame_result
    image = _resize(
        frame_result.frame.image, max(1, round(across * share)), max(1, round(down * share))
    )
    results = [
        replace(result, face=_scaled(result.face, share)) if result.face else result
        for result in frame_result.results
    ]
    return replace(frame_result, frame=replace(frame_result.frame, image=image), results=results)


def fit_size(
    size: tuple[int, int], limit: tuple[int, int], enlarge: bool = False
) -> tuple[int, int]:
    """Scale a width and height, keeping the aspect ratio, to fit; enlarge them only on request."""
    share = min(limit[0] / size[0], limit[1] / size[1])
    share = share if enlarge else min(share, 1.0)
    return max(1, round(share * size[0])), max(1, round(share * size[1]))


def draw_no_signal(size: tuple[int, int], health: StreamHealth) -> Image:
    """Draw the name of a source and the reason why it has no image.

    Returns:
        uint8 [height, width, 3], BGR; `size` is its width and height.
    """
    width, height = size
    out = np.full((height, width, 3), draw.PANEL, np.uint8)
    capital = min(max(9.0, 0.03 * min(size)), width / 16, height / 14)
    room = width - 4 * capital
    lines = [(_STATE_TITLES[health.state], 1.6 * capital, draw.TEXT)]
    lines.append((_shorten(printable(health.source), capital, room), capital, draw.TEXT))
    reasons = [printable(health.error)] if health.error else []
    if health.state == "waiting" and health.next_try is not None:
        reasons.append(f"next retry in {math.ceil(health.next_try)} s")
    elif health.state == "failed":
        reasons.append("no more retries")
    for text in reasons:
        lines += [(line, 0.9 * capital, _MUTED_COLOUR) for line in _wrap(text, 0.9 * capital, room)]
    lines = lines[: int(height / capital / 2.1) - 4]
    y = height / 2 - (1.05 * len(lines) - 2.2) * capital
    _draw_sign(out, (width / 2, y - 3.4 * capital), 2 * capital, health)
    for text, letter, colour in lines:
        y += 1.3 * letter
        draw.put_text(out, text, ((width - draw.measure_text(text, letter)) / 2, y), letter, colour)
        y += 0.9 * letter
    return out


def draw_keys(image: Image, keys: Mapping[str, str]) -> None:
    """Draw descriptions of keys, by name, on uint8 [height, width, 3], BGR, in place."""
    height, width = image.shape[:2]
    lines = len(keys) + 1
    capital = min(max(9.0, 0.03 * min(height, width)), width / 24, height / (2 * lines))
    names = max(draw.measure_text(name, capital) for name in keys)
    wide = names + max(draw.measure_text(text, capital) for text in keys.values()) + 4.5 * capital
    left, top = round((width - wide) / 2), round(height / 2 - lines * capital)
    panel = image[max(0, top) : top + round(2 * lines * capital), max(0, left) :][:, : round(wide)]
    panel[:] = draw.PANEL
    y = 1.0 * capital
    for name, text in keys.items():
        y += 1.5 * capital
        draw.put_text(panel, name, (1.5 * capital, y), capital, draw.TEXT)
        draw.put_text(panel, text, (names + 3 * capital, y), capital, _MUTED_COLOUR)
        y += 0.5 * capital


def _scaled(box: Box, share: float) -> Box:
    left, top, width, height = (round(share * value) for value in box)
    return left, top, max(1, width), max(1, height)


def _resize(image: Image, width: int, height: int) -> Image:
    # INTER_AREA would take 5 ms of the frame loop for 1920x1080; INTER_LINEAR takes 1 ms.
    method = cv2.INTER_LINEAR if width < image.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def _verdict(result: Result) -> tuple[Label | None, float | None]:
    """Return label and score to show: those of the track, if any, because they do not flicker."""
    if result.track:
        return result.track.label, result.track.score
    # A score that does not count would confuse users.
    return result.label, None if result.reason else result.score


def _draw_labels(
    image: Image, boxes: Sequence[Box], results: Sequence[Result], capital: float
) -> None:
    """Draw a panel at each box: shape and colour of the label, text, score, and reason if any."""
    height, width = image.shape[:2]
    taken: list[Box] = []
    for box, result in zip(boxes, results, strict=True):
        label, score = _verdict(result)
        text = LABEL_NAMES[label] if label else "no verdict"
        text += "" if score is None else f" {score:.3f}"
        text += f", {result.reason}" if result.reason else ""
        letter, size = draw.fit_label(text, capital, width, height)
        left, top = _place(size, box, boxes, taken, (width, height), bool(result.face))
        # With a margin between adjacent panels.
        taken.append((left - 2, top - 2, size[0] + 4, size[1] + 4))
        draw.draw_label(image[top : top + size[1], left : left + size[0]], label, text, letter)


def _place(
    size: tuple[int, int],
    box: Box,
    boxes: Sequence[Box],
    taken: Sequence[Box],
    room: tuple[int, int],
    outside: bool,
) -> tuple[int, int]:
    """Return left and top of a panel, where it covers least, within the image.

    Overlap with other panels costs most, then overlap with faces. Of equally good places, the
    first is chosen, so that panels do not move from frame to frame.
    """
    (width, height), (x, y, across, down) = size, box
    gap = max(2, height // 6)
    if not outside:
        x, y = x + 2 * gap, y + 2 * gap
    aligned, above, below = x + across - width, y - gap - height, y + down + gap
    inside = [(x, y), (x, y + down - height)]
    around = [(x, above), (x, below), (aligned, above), (aligned, below)]
    around += [(x + across + gap, y), (x - gap - width, y)]
    around += [(x, above - height - gap), (x, below + height + gap)]
    places = np.array(around + inside if outside else inside[:1])
    places = np.maximum(np.minimum(places, np.array(room) - size), 0)
    cost = 4 * _overlap(places, size, taken) + _overlap(places, size, boxes if outside else ())
    best = places[int(np.argmin(cost))]
    return int(best[0]), int(best[1])


def _overlap(places: _Whole, size: tuple[int, int], boxes: Sequence[Box]) -> _Whole:
    """Return the number of pixels that a panel at each place shares with the boxes."""
    if not boxes:
        return np.zeros(len(places), np.int64)
    begin = np.array(boxes)[:, :2]
    end = begin + np.array(boxes)[:, 2:]
    places = places[:, None]
    common = np.minimum(places + size, end) - np.maximum(places, begin)
    covered: _Whole = np.maximum(common, 0).prod(axis=2).sum(axis=1)
    return covered


def _draw_strip(image: Image, frame: Frame, health: StreamHealth, capital: float) -> int:
    """Draw name, time, frame rate, age and drops along the lower edge; return its upper edge."""
    height, width = image.shape[:2]
    top: int = max(0, height - math.ceil(2.2 * capital))
    strip = image[top:]
    cv2.addWeighted(strip, 0.2, np.full_like(strip, draw.PANEL), 0.8, 0, strip)
    baseline = 1.6 * capital
    right = width - 0.8 * capital
    if health.state not in ("playing", "ended"):
        right -= draw.measure_text("no signal", capital)
        strip[:, max(0, round(right - 0.8 * capital)) :] = _ALARM_COLOUR
        draw.put_text(strip, "no signal", (right, baseline), capital, draw.TEXT)
        right -= 0.8 * capital
    else:
        for text in _facts(frame, health):
            start = right - draw.measure_text(text, capital)
            # A third of the strip is reserved for the name.
            if start < width / 3:
                break
            draw.put_text(strip, text, (start, baseline), capital, _MUTED_COLOUR)
            right = start - 1.4 * capital
    name = _shorten(printable(frame.source), capital, right - 1.6 * capital)
    draw.put_text(strip, name, (0.8 * capital, baseline), capital, draw.TEXT)
    return top


def _facts(frame: Frame, health: StreamHealth) -> list[str]:
    """Return the facts from right to left; those on the left are omitted if space is short."""
    facts = [f"{health.fps:.1f} fps"]
    if health.age is not None:
        old = f"{1000 * health.age:.0f} ms" if health.age < 10 else f"{health.age:.0f} s"
        facts.append(f"{old} old")
    if not health.live:
        minutes, seconds = divmod(int(frame.time), 60)
        return [*facts, f"{minutes}:{seconds:02}"]
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(frame.time))
    return [*facts, f"{health.dropped} dropped", clock]


def _draw_sign(
    image: Image, centre: tuple[float, float], radius: float, health: StreamHealth
) -> None:
    """Draw a ring: red and struck through for a failed source, otherwise plain."""
    failed = health.state in ("waiting", "failed")
    colour = _ALARM_COLOUR if failed else _MUTED_COLOUR
    x, y = round(centre[0]), round(centre[1])
    stroke = max(1, round(radius / 5))
    cv2.circle(image, (x, y), round(radius), colour, stroke, cv2.LINE_AA)
    if failed:
        reach = round(radius * math.sqrt(0.5))
        cv2.line(image, (x - reach, y + reach), (x + reach, y - reach), colour, stroke, cv2.LINE_AA)


def _shorten(text: str, capital: float, room: float) -> str:
    """Shorten a text in the middle until it fits."""
    # A letter is at least a tenth of a capital wide, so more letters cannot fit.
    keep = min(len(text), max(0, int(10 * room / capital)))
    shown = text
    while draw.measure_text(shown, capital) > room:
        if keep <= 2:
            return ""
        keep -= max(1, keep // 16)
        shown = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
    return shown


def _wrap(text: str, capital: float, room: float, max_lines: int = 4) -> list[str]:
    """Wrap a text into at most `max_lines` lines; lines that are too wide are shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and draw.measure_text(f"{lines[-1]} {word}", capital) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines[max_lines - 1 :] = [" ".join(lines[max_lines - 1 :])]
    return [_shorten(line, capital, room) for line in lines if line]
