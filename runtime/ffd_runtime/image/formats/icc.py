"""ICC profiles for colours that a file describes by numbers instead of by a profile."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_Curve = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

# x and y of white, red, green and blue (CIE 1931).
Chromaticities = tuple[float, ...]
_D65 = (0.3127, 0.329)
_C = (0.31, 0.316)
_E = (1 / 3, 1 / 3)
_P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
_SMPTE_240 = (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07)
SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)

# Code points of ITU-T H.273. Others are reserved or unspecified, and mean sRGB to viewers.
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: _SMPTE_240,
    7: _SMPTE_240,
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (0.314, 0.351, *_P3),
    12: (*_D65, *_P3),
    22: (*_D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),
}
# Video curves (1, 6, 11, 14 and 15) are shown with the curve of sRGB, as image viewers do.
_SRGB_CURVES = frozenset((1, 6, 11, 13, 14, 15))
# Encoders state 2.2 and rounded chromaticities where they mean sRGB. libpng has the same limit.
_MAX_CHANGE_OF_GAMMA = 0.05
_MAX_OFFSET_OF_SRGB = 0.001
_CURVE_POINTS = 4096

# White of ICC's connection space, and the Bradford matrix, which adapts another white to it.
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_HEADER_BYTES, _TAG_BYTES = 128, 12
# Profiles of cameras and screens have 0.5 to 10 kB, and those with tables up to 3 MB.
MAX_PROFILE_BYTES = 1 << 22
# The tags that browsers read: tables or curves and primaries, and white.
_SHOWN_TAGS = frozenset(
    (b"A2B0", b"rTRC", b"gTRC", b"bTRC", b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"chad")
)


def is_code(primaries: int, transfer: int) -> bool:
    """Return whether these code points of ITU-T H.273 describe colours."""
    return primaries in _PRIMARIES and (transfer in _SRGB_CURVES or transfer in _CURVES)


def keep_shown_tags(profile: bytes) -> bytes:
    """Return an ICC profile without the tags that browsers ignore.

    Little CMS also reads tables of float numbers (`D2B0`), before all others. They may describe
    other colours, and a few bytes of them can take minutes and gigabytes.
    """
    kept = bytearray(profile)
    begin = _HEADER_BYTES + 4
    count = int.from_bytes(kept[_HEADER_BYTES:begin], "big")
    end = min(begin + count * _TAG_BYTES, len(kept) - _TAG_BYTES + 1)
    places = {profile[at : at + 4]: at for at in range(begin, end, _TAG_BYTES)}
    if b"A2B0" not in places and (colorimetric := places.get(b"A2B1")):
        # Browsers read it as a substitute.
        kept[colorimetric : colorimetric + 4] = b"A2B0"
    for number, at in enumerate(range(begin, end, _TAG_BYTES)):
        if bytes(kept[at : at + 4]) not in _SHOWN_TAGS:
            # Little CMS refuses profiles with two tags of one name.
            kept[at : at + 4] = struct.pack(">I", number)
    return bytes(kept)


@lru_cache(maxsize=64)
def profile_of_codes(primaries: int, transfer: int) -> bytes:
    """Return an ICC profile for code points of ITU-T H.273.

    Args:
        primaries: `ColourPrimaries`.
        transfer: `TransferCharacteristics`.

    Returns:
        The profile; empty for sRGB, and for codes that viewers ignore.
    """
    if not is_code(primaries, transfer) or (primaries == 1 and transfer in _SRGB_CURVES):
        return b""
    return _build(_PRIMARIES[primaries], _CURVES.get(transfer, _srgb))


@lru_cache(maxsize=64)
def profile_of_gamma(gamma: float, chromaticities: Chromaticities = SRGB) -> bytes:
    """Return an ICC profile for a power curve.

    Args:
        gamma: exponent from the samples to light, about 2.2.
        chromaticities: x and y of white, red, green and blue.

    Returns:
        The profile; empty for sRGB, whose curve is about 2.2, and if no colours can have these
        numbers.
    """
    is_srgb = np.allclose(chromaticities, SRGB, rtol=0, atol=_MAX_OFFSET_OF_SRGB)
    if is_srgb and abs(gamma / 2.2 - 1) <= _MAX_CHANGE_OF_GAMMA:
        return b""
    return _build(chromaticities, lambda samples: samples**gamma)


def _build(chromaticities: Chromaticities, curve: _Curve) -> bytes:
    """Return a profile of version 2.4 with a matrix and one curve for all channels.

    It is empty if the chromaticities are impossible: white without light, primaries on a line, or
    numbers that a profile cannot contain.
    """
    if chromaticities[1] == 0:
        return b""
    try:
        columns = _adapted_primaries(chromaticities)
        tags = {
            name: b"XYZ \0\0\0\0" + _fixed(column)
            for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)
        }
    except (np.linalg.LinAlgError, struct.error, OverflowError, ValueError):
        # The last two are for numbers that are not finite.
        return b""
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + _fixed(_D50)
    light = curve(np.linspace(0, 1, _CURVE_POINTS)).clip(0, 1)
    points = (light * 0xFFFF).round().astype(">u2").tobytes()
    table = b"curv\0\0\0\0" + struct.pack(">I", _CURVE_POINTS) + points
    start = _HEADER_BYTES + 4 + _TAG_BYTES * (len(tags) + 3)
    index, content = [], b""
    for name, tag in tags.items():
        index.append(name + struct.pack(">II", start + len(content), len(tag)))
        content += tag
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        index.append(name + struct.pack(">II", start + len(content), len(table)))
    content += table
    header = struct.pack(
        ">I4sI4s4s4s12s4s28s12s48s",
        start + len(content),
        b"",
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"",
        b"acsp",
        b"",
        _fixed(_D50),
        b"",
    )
    return header + struct.pack(">I", len(index)) + b"".join(index) + content


def _adapted_primaries(chromaticities: Chromaticities) -> npt.NDArray[np.float64]:
    """Return XYZ of the primaries as columns, adapted to `_D50`.

    Raises:
        LinAlgError: the primaries lie on a line.
    """
    white, *primaries = (
        np.array([x, y, 1 - x - y])
        for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
    )
    white = white / white[1]
    matrix = np.stack(primaries, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return np.asarray(np.linalg.solve(_BRADFORD, (scale * (_BRADFORD @ matrix).T).T))


def _fixed(values: npt.NDArray[Any]) -> bytes:
    """Return ICC's s15Fixed16Number of each value."""
    return b"".join(struct.pack(">i", round(float(value) * 0x10000)) for value in values)


def _srgb(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _smpte_240(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(samples < 0.0912, samples / 4, ((samples + 0.1115) / 1.1115) ** (1 / 0.45))


def _pq(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """SMPTE ST 2084, where white of 203 cd/m2 becomes 1 and what is brighter is clipped."""
    power = samples ** (1 / 78.84375)
    light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return np.asarray(light ** (1 / 0.1593017578125) * (10_000 / 203))


def _hlg(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ARIB STD-B67 on a display of 1,000 cd/m2, of which 203 become 1 and more is clipped."""
    bright = (np.exp((samples - 0.55991073) / 0.17883277) + 0.28466892) / 12
    scene = np.where(samples <= 0.5, samples**2 / 3, bright)
    return np.asarray(scene**1.2 * (1000 / 203))


_CURVES: dict[int, _Curve] = {
    4: lambda samples: samples**2.2,
    5: lambda samples: samples**2.8,
    7: _smpte_240,
    8: lambda samples: samples,
    16: _pq,
    17: lambda samples: samples**2.6 * (52.37 / 48),
    18: _hlg,
}
