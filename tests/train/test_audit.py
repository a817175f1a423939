"""ffd-data audit finds planted problems, and no others."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.image.decode import Image, decode
from ffd_train.audit.appearance import measure_appearance
from ffd_train.audit.audit import Audit, audit
from ffd_train.audit.audit_page import render
from ffd_train.audit.copies import DISTANCE, Copies, _candidates, find_copies
from ffd_train.audit.encoding import read_encoding
from ffd_train.audit.facts import Table, list_images
from ffd_train.audit.findings import _copies
from ffd_train.audit.probe import VIEWS, probe_classes
from ffd_train.cli.data import main as ffd_data
from ffd_train.face_data import FaceData, Sample

from ..documented import documented_fields
from ..nightly import examples
from ..runtime.test_imports import HEAVY, RUNTIME, loaded_by
from ..runtime.test_report import HOSTILE, Page

CLASSES = ("generated", "groundtruth")
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
Change = Callable[[str, Image], Image]


def motif(seed: int, side: int = 64) -> Image:
    """A random image of soft blots and noise, by seed."""
    rng = np.random.default_rng(seed)
    blots = cv2.resize(rng.normal(128, 45, (6, 6, 3)), (side, side), interpolation=cv2.INTER_CUBIC)
    noisy = blots + rng.normal(0, rng.uniform(2, 12), blots.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def jpeg(image: Image, quality: int) -> bytes:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data.tobytes())


def make(
    root: Path,
    count: int = 60,
    quality: Callable[[str], int] = lambda _: 88,
    change: Change = lambda _, image: image,
    splits: tuple[str, ...] = (".",),
) -> Path:
    """Both classes from the same distribution, except for the given differences."""
    for number, (split, label) in enumerate((s, c) for s in splits for c in CLASSES):
        folder = root / split / label
        folder.mkdir(parents=True)
        for i in range(count):
            image = change(label, motif(1000 * number + i))
            (folder / f"{i}.jpg").write_bytes(jpeg(image, quality(label)))
    return root


def look(root: Path) -> Audit:
    return audit(list_images(root))


def said(done: Audit) -> dict[str, str]:
    return {finding.kind: finding.text for finding in done.findings}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(ffd_data, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """A data set whose classes differ in JPEG quality, and its audit."""
    root = tmp_path_factory.mktemp("unlike") / "set"
    make(root, quality=lambda label: 75 if label == "generated" else 95)
    return root, look(root)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 89, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    image = motif(0)
    assert read_encoding(jpeg(image, quality)).quality == quality
    for name, shift in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
        file = io.BytesIO()
        options = {"quality": quality, "subsampling": shift, "progressive": bool(shift)}
        Pillow.fromarray(image).save(file, "jpeg", **options)
        found = read_encoding(file.getvalue())
        assert (found.quality, found.subsampling, found.progressive) == (quality, name, bool(shift))


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
def test_exif_and_turned_pictures(format_: str) -> None:
    picture = Pillow.fromarray(motif(0)[:40])
    plain, tagged = io.BytesIO(), io.BytesIO()
    picture.save(plain, format_)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    picture.save(tagged, format_, exif=exif)
    found = read_encoding(plain.getvalue())
    assert (found.format, found.exif, found.width, found.height) == (format_, False, 64, 40)
    assert (found.quality is None) == (format_ != "jpeg")
    found = read_encoding(tagged.getvalue())
    assert (found.exif, found.width, found.height) == (True, 40, 64)


def test_grey_jpegs_have_no_chroma() -> None:
    assert read_encoding(jpeg(motif(0)[..., 0], 80)).subsampling == "grey"


@settings(max_examples=examples(150), deadline=None)
@given(st.integers(2, 700), st.binary(max_size=8), st.integers(0, 40))
def test_a_damaged_jpeg_is_read_or_refused(at: int, put: bytes, cut: int) -> None:
    data = jpeg(motif(0, 16), 75)
    damaged = data[:at] + put + data[at + cut :]
    try:
        found = read_encoding(damaged)
    except InputError:
        return
    assert found.quality is None or 1 <= found.quality <= 100


def test_image_measurements() -> None:
    plain = np.full((200, 200, 3), 200, np.uint8)
    face = plain.copy()
    face[60:180, 60:140] = motif(1, 200)[60:180, 60:140]
    assert measure_appearance(face).texture < 0.5
    assert measure_appearance(motif(1, 200)).texture > 2
    assert measure_appearance(motif(1)).frame == 0
    sharp, soft = motif(1, 300), cv2.GaussianBlur(motif(1, 300), (0, 0), 2)
    assert (
        measure_appearance(sharp).sharpness
        > 3 * measure_appearance(np.asarray(soft, np.uint8)).sharpness
    )
    framed = cv2.copyMakeBorder(motif(1, 180), 10, 10, 10, 10, cv2.BORDER_CONSTANT)
    seen = measure_appearance(np.asarray(framed, np.uint8))
    assert seen.frame == pytest.approx(0.05)
    assert seen.frame_grey == 0
    bars = cv2.copyMakeBorder(
        motif(1, 180)[10:-10], 10, 10, 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3
    )
    assert measure_appearance(np.asarray(bars, np.uint8)).frame == pytest.approx(10 / 180)
    red = np.zeros((50, 90, 3), np.uint8)
    red[..., 2] = 255
    # CIE Lab of sRGB's red, by the standard's formula.
    seen = measure_appearance(red)
    assert (seen.brightness, seen.redness, seen.yellowness) == pytest.approx(
        (53.2, 80.1, 67.2), abs=0.2
    )
    assert measure_appearance(np.zeros((1, 1, 3), np.uint8)).brightness == 0


def test_copies_are_found_and_others_are_not() -> None:
    pictures = [motif(seed, 200) for seed in range(150)]
    first = pictures[0]
    again = [
        decode(jpeg(first, 30)),
        np.asarray(cv2.resize(first, (80, 80), interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(cv2.GaussianBlur(first, (0, 0), 2), np.uint8),
        first,
    ]
    flat = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 1, 255)]
    seen = [measure_appearance(image) for image in pictures + again + flat]
    digests = np.random.default_rng(0).integers(0, 256, (len(seen), 32), dtype=np.uint8)
    digests[153] = digests[0]
    hashes = np.array([one.phash for one in seen], np.uint64)
    smalls = np.stack([one.small for one in seen])
    found = find_copies(digests, hashes, smalls)
    assert [(copies.members, copies.exact) for copies in found] == [
        ((0, 150, 151, 152, 153), False)
    ]
    only = np.array([0, 5, 153])
    (same,) = find_copies(digests[only], hashes[only], smalls[only])
    assert same.members == (0, 2)
    assert same.exact
    assert find_copies(digests[:0], hashes[:0], smalls[:0]) == []


def test_no_pair_of_near_hashes_is_missed() -> None:
    rng = np.random.default_rng(0)
    hashes = np.repeat(rng.integers(0, 1 << 63, 60, dtype=np.uint64), 4)
    for _ in range(4):
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes)).astype(np.uint64)
    found = {tuple(sorted(pair)) for pairs in _candidates(hashes) for pair in pairs.T.tolist()}
    numbers = hashes.tolist()
    expected = {
        (i, j)
        for j in range(len(numbers))
        for i in range(j)
        if (numbers[i] ^ numbers[j]).bit_count() <= DISTANCE
    }
    assert len(expected) > 20
    assert found == expected


def test_a_thousand_copies_are_one_group() -> None:
    seen = measure_appearance(motif(0))
    hashes = np.full(3000, seen.phash, np.uint64)
    digests = np.random.default_rng(0).integers(0, 256, (3000, 32), dtype=np.uint8)
    (found,) = find_copies(digests, hashes, np.repeat(seen.small[None], 3000, axis=0))
    assert len(found.members) == 3000


def test_clean_data_have_no_findings(tmp_path: Path) -> None:
    root = make(tmp_path / "set", count=60)
    for label in CLASSES:
        for i in range(0, 60, 2):
            (root / label / f"{i}.jpg").write_bytes(jpeg(motif(5000 + i, 80), 60 + i // 4))
    rows = [f"{c}/{i}.jpg,{c[:3]}-{i % 3 == 0}" for c in CLASSES for i in range(60)]
    (root / "manifest.csv").write_text("\n".join(["path,source", *rows]))
    # Half of the images are in both classes.
    for i in range(0, 60, 2):
        (root / "groundtruth" / f"{i}.jpg").write_bytes(jpeg(motif(7000 + i, 80), 60 + i // 4))
    done = look(root)
    assert said(done) == {}
    assert len(done.probes) == 4
    assert len(done.sources) == 4
    assert all(abs(probe.score.auc - 0.5) < 0.15 for probe in done.probes)


def test_a_class_of_another_quality_is_named(unlike: tuple[Path, Audit]) -> None:
    _, done = unlike
    text = said(done)["shortcut-file"]
    assert text.startswith("a model can use file facts (AUC 1.00 ± 0.00)")
    assert "JPEG quality: generated 75, groundtruth 95 (AUC 1.00)" in text
    worst = done.findings[0]
    assert (worst.kind, worst.severity) == ("shortcut-file", "high")
    assert "prepare --match" in worst.advice


def test_a_class_with_a_black_border_is_named(tmp_path: Path) -> None:
    def frame(label: str, image: Image) -> Image:
        if label == "generated":
            cv2.rectangle(image, (0, 0), (63, 63), (0, 0, 0), 3)
        return image

    found = said(look(make(tmp_path / "set", change=frame)))
    assert found["frame"] == (
        "a model can use a black border: 100 % of generated, 0 % of groundtruth"
    )
    assert "the border (AUC 1.00" in found["shortcut-border"]


def test_a_copy_across_splits_and_one_across_classes_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set", count=8, splits=("train", "test"))
    shutil.copy(root / "train/generated/3.jpg", root / "test/generated/leak.jpg")
    saved_again = jpeg(decode((root / "train/generated/5.jpg").read_bytes()), 50)
    (root / "train/groundtruth/torn.jpg").write_bytes(saved_again)
    (root / "test/groundtruth/twice.jpg").write_bytes(
        (root / "test/groundtruth/0.jpg").read_bytes()
    )
    done = look(root)
    found = said(done)
    assert "train/generated/3.jpg = test/generated/leak.jpg" in found["copies-across-splits"]
    assert "train/generated/5.jpg = train/groundtruth/torn.jpg" in found["copies-across-classes"]
    assert "test/groundtruth/0.jpg = test/groundtruth/twice.jpg" in found["copies"]
    assert len(done.copies) == 3
    assert [one.severity for one in done.findings] == ["high", "high", "low"]


def test_splits_of_a_manifest_are_audited(tmp_path: Path) -> None:
    root = make(tmp_path / "set", count=8)
    shutil.copy(root / "generated/0.jpg", root / "generated/leak.jpg")
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]
    rows = [f"{path},{'test' if 'leak' in path else 'train'}" for path in paths]
    (root / "manifest.csv").write_text("\n".join(["path,split", *rows]))
    assert "generated/0.jpg = generated/leak.jpg" in said(look(root))["copies-across-splits"]


def test_copies_do_not_help_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A classifier that memorises would separate thirty images with four copies each perfectly.
    root = make(tmp_path / "set", count=30)
    for label in CLASSES:
        for path in sorted((root / label).iterdir()):
            for quality in (60, 70, 80):
                data = jpeg(decode(path.read_bytes()), quality)
                path.with_name(f"{path.stem}-{quality}.jpg").write_bytes(data)
    done = look(root)
    assert len(done.copies) == 60
    assert not any(kind.startswith("shortcut") for kind in said(done))
    monkeypatch.setattr("ffd_train.audit.probe.VIEWS", {"thumbnail": VIEWS["thumbnail"]})
    (by_heart,) = probe_classes(done.table, np.arange(240))
    assert by_heart.score.auc > 0.9


def test_sharpness_and_sources_are_named(tmp_path: Path) -> None:
    def soften(label: str, image: Image) -> Image:
        sigma = 1.5 if label == "groundtruth" else 0.01
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)

    root = make(tmp_path / "set", change=soften)
    rows = ["path,source"]
    for i in range(60):
        name = "studio" if i % 2 else "street"
        rows.append(f"generated/{i}.jpg,{name}")
        if name == "studio":
            image = cv2.imread(str(root / f"generated/{i}.jpg"))
            assert image is not None
            wall = np.full((128, 128, 3), 190, np.uint8)
            wall[32:96, 32:96] = image
            (root / f"generated/{i}.jpg").write_bytes(jpeg(wall, 88))
    (root / "manifest.csv").write_text("\n".join(rows))
    found = said(look(root))
    assert "use sharpness: generated" in found["shortcut-detail"]
    assert "width in pixels of generated: street 64, studio 128" in found["source-file"]
    assert "studio in generated" in found["source-framing"]
    assert "plain backgrounds: 100 % of studio (generated), 0 %" in found["source-background"]


def test_unreadable_files_and_one_class_do_not_stop_it(tmp_path: Path) -> None:
    root = make(tmp_path / "set", count=4)
    shutil.rmtree(root / "groundtruth")
    (root / "generated/cut.jpg").write_bytes((root / "generated/0.jpg").read_bytes()[:-200])
    (root / "generated/empty.png").touch()
    (root / "generated/notes.txt").touch()
    done = call("audit", root, "--json", "--html", tmp_path / "page.html")
    assert done.exit_code == 3, done.output
    document = json.loads(done.stdout)
    assert [set(document)] == documented_fields("json.md", "ffd-data audit")
    assert document["images"] == 4
    assert document["ignored"] == 1
    assert document["probes"] == []
    assert [(row["path"], row["code"]) for row in document["unreadable"]] == [
        ("generated/cut.jpg", "truncated"),
        ("generated/empty.png", "empty"),
    ]
    assert [one["kind"] for one in document["findings"]] == ["class-empty", "unreadable"]
    assert (tmp_path / "page.html").exists()
    for path in (root / "generated").glob("?.jpg"):
        path.write_bytes(b"")
    assert call("audit", root, "--html", tmp_path / "page.html", "--table").exit_code == 3


def test_invalid_input_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected the folders generated/ and groundtruth/"):
        list_images(tmp_path / "empty")
    root = make(tmp_path / "set", count=1)
    for arguments, code, message in (
        (("audit", tmp_path / "absent"), 1, "no such folder"),
        (("audit", root, "--html", "page.pdf"), 1, "must end with .html"),
        (("audit", root, "--html", tmp_path / "absent/page.html"), 1, "no such folder"),
        (("audit", root, "--sample", 0), 2, "--sample"),
        (("adit",), 2, "No such command 'adit'"),
        (("--nope",), 2, "No such option"),
    ):
        done = call(*arguments)
        assert done.exit_code == code, done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_sample_is_the_same_every_time(tmp_path: Path) -> None:
    root = make(tmp_path / "set", count=12)
    rows = [f"{label}/{i}.jpg,{'a' if i < 8 else 'b'}" for label in CLASSES for i in range(12)]
    (root / "manifest.csv").write_text("\n".join(["path,source", *rows]))
    chosen = list_images(root, 3).samples
    assert chosen == list_images(root, 3).samples
    kinds = [(sample.label, sample.source) for sample in chosen]
    assert sorted(set(kinds)) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert len(kinds) == 12
    assert len(list_images(root, 10).samples) == 24


def test_the_command_is_deterministic(
    unlike: tuple[Path, Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, before = unlike
    done = call("audit", root)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {**before.to_dict(), "sample": None}
    assert before.to_dict()["groups"][0]["facts"]["quality"]["median"] == 75
    monkeypatch.setattr("ffd_train.audit.audit.audit", lambda *_: before)
    done = call("audit", root, "--table")
    shown = " ".join(done.stdout.split())
    assert "JPEG quality: generated 75, groundtruth 95" in shown
    assert "file facts" in shown


def test_shards_are_read_too_and_matching_helps(unlike: tuple[Path, Audit], tmp_path: Path) -> None:
    root, _ = unlike
    done = call("prepare", root, "--output", tmp_path / "packed")
    assert done.exit_code == 0, done.output
    data = list_images(tmp_path / "packed")
    assert len(data.samples) == 120
    assert all(".tar!/" in sample.path for sample in data.samples)
    after = look(tmp_path / "packed")
    assert after.table.unreadable == ()
    assert after.copies == []
    assert "JPEG quality" not in said(after).get("shortcut-file", "")


def test_help_imports_no_heavy_module() -> None:
    for arguments in (["--help"], ["audit", "--help"]):
        code = f"from ffd_train.cli.data import main\nmain({arguments}, standalone_mode=False)"
        assert not loaded_by(code) & {*HEAVY, *RUNTIME}


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    names = [
        name.replace("/", "|")[:80].replace("\0", "") for name in HOSTILE if "\ud800" not in name
    ]
    root = make(tmp_path / "set", count=1)
    for number, name in enumerate(names):
        for label in CLASSES:
            path = os.fsencode(root / label / (name + ".jpg"))
            # Every name is in a sheet, among the copies and among the unreadable files.
            data = jpeg(motif(number), 60 if label == "generated" else 90)
            Path(os.fsdecode(path)).write_bytes(data)
            Path(os.fsdecode(path) + ".png").touch()
    with (root / "manifest.csv").open("w", errors="surrogateescape") as file:
        file.write("path,source\n")
        for name in names:
            quoted = f"generated/{name}.jpg".replace('"', '""')
            source = name.replace('"', '""')
            file.write(f'"{quoted}","{source}"\n')
    done = look(root)
    assert len(done.copies) == len(names)
    html = render(done, STARTED)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in ("style", "srcset", "action")
            if key in ("href", "src"):
                assert (value or "").startswith(("#", "data:"))
    assert "url(" not in html
    text = "".join(page.text)
    assert all(c.isprintable() or c in "\n\r" for c in text)
    assert "<script>alert(1)<|script>.jpg" in text
    assert "bytes-\\xff\\xfe.jpg" in text
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert f"style-src 'sha256-{digest}'" in (policy or "")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(image["alt"] for image in page.all("img"))


def test_real_faces_have_the_findings_of_their_readme(faces: Path) -> None:
    done = audit(list_images(faces, 100))
    found = said(done)
    for source, width in (
        ("stylegan-ffhq", "256"),
        ("generated-photos", "320"),
        ("ffhq", "256"),
        ("celeba-hq", "320"),
        ("all-age-faces", "30"),
    ):
        assert f"{source} {width}" in found["source-file"]
    assert "size" in found["source-file"]
    for source in ("stylegan-ffhq", "generated-photos", "all-age-faces"):
        assert source in found["source-framing"]
    plain = re.search(
        r"(\d+) % of generated-photos \(generated\), (\d+) %", found["source-background"]
    )
    assert plain
    assert int(plain[1]) > 80
    assert int(plain[2]) < 35
    # According to its README, all images have the same encoding.
    told = {one.fact.name for probe in done.probes for one in probe.telling}
    assert not told & {"format", "quality", "subsampling", "progressive", "exif"}


def test_many_copies_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(f"{i}", 0, ("train", "test")[i % 4 == 1], "") for i in range(800)]
    none = np.empty(0, np.uint8)
    hashes = np.empty(0, np.uint64)
    table = Table(FaceData(Path(), ()), tuple(samples), (), {}, none, hashes, none)
    groups = [Copies((i, i + 1), True) for i in range(0, 800, 2)]
    compared: list[object] = []
    equal = Copies.__eq__

    def note(one: Copies, other: object) -> bool:
        compared.append(other)
        return equal(one, other)

    monkeypatch.setattr(Copies, "__eq__", note)
    kinds = [finding.kind for finding in _copies(table, groups)]
    assert kinds == ["copies-across-splits", "copies"]
    assert len(compared) < len(groups)
