"""Name files of formats that ffd does not support."""

from __future__ import annotations

import re

from ...core.errors import InputError

_CONVERT = "convert it to JPEG or PNG"
# A raw codestream, and the first box of a container.
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_SIGNATURES = (
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "a JPEG 2000 file"),
    ((b"8BPS",), "a Photoshop document"),
    ((b"v/1\x01",), "an OpenEXR file"),
    # An icon has a number of images after its type.
    ((b"\0\0\2\0\0\0", b"\0\0\x0a\0\0\0"), "a TGA file"),
    ((b"\0\0\1\0", b"\0\0\2\0"), "an icon"),
    ((b"%PDF-",), "a PDF document"),
    ((b"FUJIFILMCCD-RAW",), "camera raw data (Fujifilm RAF)"),
    ((b"IIRO", b"IIRS", b"MMOR"), "camera raw data (Olympus ORF)"),
    ((b"IIU\0",), "camera raw data (Panasonic RW2)"),
    ((b"FOVb",), "camera raw data (Sigma X3F)"),
    ((b"P7\n", b"PF\n", b"Pf\n"), "a PAM or PFM file"),
    ((b"II\xbc\1",), "a JPEG XR file"),
    ((b"qoif",), "a QOI file"),
    ((b"icns",), "an icon"),
    ((b"DDS ",), "a DDS texture"),
    ((b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR file"),
    ((b"gimp xcf",), "a GIMP document"),
)
# MP4 and QuickTime, Matroska, Ogg, FLAC, MP3, AVI, WAV.
_MEDIA = re.compile(rb"....ftyp|\x1aE\xdf\xa3|OggS|fLaC|ID3|RIFF....(?:AVI |WAVE)", re.DOTALL)
_BLANKS = b" \t\r\n\f\xef\xbb\xbf\xff\xfe"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta")
_JSON = re.compile(rb'\{\s*"[\w .-]+"\s*:')
_MIN_ZEROS = 512
# Compressed tars are archives; these are other or damaged ones.
_PACKED = {
    b"\x1f\x8b": "a gzip",
    b"BZh": "a bzip2",
    b"\xfd7zXZ\0": "an xz",
    b"\x28\xb5\x2f\xfd": "a Zstandard",
    b"7z\xbc\xaf\x27\x1c": "a 7z",
    b"Rar!\x1a\x07": "a RAR",
}
_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def name_foreign(data: bytes) -> InputError:
    """Return the error for a file without a known signature, with its format and what to do.

    Returns:
        `unsupported` for some image formats that ffd cannot read, otherwise `not_an_image`.
    """
    if data.startswith(_JXL):
        return InputError("unsupported", f"a JPEG XL image, which ffd does not read: {_CONVERT}")
    if data[4:12] == b"ftypcrx ":
        return InputError("unsupported", f"camera raw data (Canon CR3): {_CONVERT}")
    if _MEDIA.match(data):
        media = (
            "a video or audio file instead of an image: classify videos in a separate run, and "
            "name them without a pattern"
        )
        return InputError("not_an_image", media)
    for starts, name in _SIGNATURES:
        if data.startswith(starts):
            return InputError("not_an_image", f"{name}, which ffd does not read: {_CONVERT}")
    text = name_text(data) or "not an image in a format that ffd reads"
    return InputError("not_an_image", text)


def name_text(data: bytes) -> str | None:
    """Return what was saved instead of an image or a video, text or zeros, and what to do."""
    if data.startswith(_LFS):
        return "a Git LFS pointer instead of the file: run `git lfs pull`"
    if data.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "a git-annex pointer instead of the file: run `git annex get`"
    if data.startswith((b"data:image/", b"data:video/")):
        return "a data address instead of the file: decode its base64 text"
    for start, name in _PACKED.items():
        if data.startswith(start):
            return f"{name} file without a readable tar: unpack it"
    if len(data) >= _MIN_ZEROS and not data.strip(b"\0"):
        return "the file contains only zeros: it was not written completely, so copy it again"
    # In UTF-16, every second byte of ASCII text is zero.
    head = data[:2048].replace(b"\0", b"").lstrip(_BLANKS).lower()
    if head.startswith(b"<?xml"):
        head = head.partition(b"?>")[2].lstrip(_BLANKS)
    while head.startswith(b"<!--") and b"-->" in head:
        head = head.partition(b"-->")[2].lstrip(_BLANKS)
    if head.startswith(_PAGES):
        return "an HTML page instead of the file: open its address in a browser and save it again"
    if head.startswith((b"<svg", b"<!doctype svg")):
        return f"an SVG drawing, which ffd does not read: {_CONVERT}"
    if head.startswith((b"<error>", b"<error ")):
        return "an error message in XML instead of the file: download it again"
    if _JSON.match(head):
        return "a text in JSON instead of the file: download it again"
    return None
