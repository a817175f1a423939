"""Join data sets of images into one folder of links with a joint manifest.csv.

Each data set is a folder with a manifest.csv that lists its images (path, label, split, source and
further columns). The images are in train/, val/ and test/, each with generated/ and groundtruth/.
The joint folder has the same layout, so that ffd-train, ffd-eval and ffd-data accept it.

Usage: python tools/join_faces.py [--hard] OUTPUT FOLDER FOLDER...
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

MANIFEST = "manifest.csv"
SPLITS = ("train", "val", "test")
CLASSES = ("generated", "groundtruth")


class JoinError(Exception):
    """The data sets cannot be joined; the message is one line."""


def join(output: Path, folders: Sequence[Path], hard: bool = False) -> int:
    """Write the complete joint folder, or nothing.

    Args:
        output: the joint folder; must not exist.
        folders: the data sets.
        hard: create hard links, which need one file system, instead of symbolic links.

    Returns:
        The number of images.

    Raises:
        JoinError: a manifest is damaged or lists a missing image, two images have the same path, or
            the folder cannot be written.
    """
    if os.path.lexists(output):
        raise JoinError(f"{output} exists: remove it, or choose another folder")
    rows: list[dict[str, str]] = []
    images: dict[str, Path] = {}
    for number, folder in enumerate(folders, 1):
        for row in _read(folder):
            path = row["path"]
            # File systems that ignore case keep only one of the two.
            if other := images.get(path.casefold()):
                raise JoinError(f"{folder / path} and {other} have one path: rename one of them")
            images[path.casefold()] = folder / path
            if row.get("identity"):
                # Identities are numbered within a data set.
                row["identity"] = f"{number}:{row['identity']}"
            rows.append(row)
    partial = output.with_name(output.name + ".partial")
    try:
        partial.mkdir(parents=True)
        try:
            _write(partial, rows, images, hard)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial)
            raise
    except OSError as error:
        hint = " (without --hard, links are symbolic)" if hard else ""
        raise JoinError(
            f"cannot write {error.filename or output}: {error.strerror}{hint}"
        ) from None
    return len(rows)


def _read(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a data set's manifest, each with an existing image."""
    manifest = folder / MANIFEST
    try:
        text = manifest.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise JoinError(f"cannot read {manifest}: {error.strerror}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
    try:
        if absent := [name for name in ("path", "source") if name not in (reader.fieldnames or ())]:
            raise JoinError(f"{manifest} has no column {absent[0]}: add it")
        rows = list(reader)
    except csv.Error as error:
        raise JoinError(f"{manifest}, line {reader.line_num}: {error}") from None
    for row in rows:
        parts = PurePosixPath(row["path"]).parts
        where = f"{manifest}: {row['path']!a}"
        if None in row:
            raise JoinError(f"{where} has more fields than there are columns")
        if len(parts) < 3 or parts[0] not in SPLITS or parts[1] not in CLASSES or ".." in parts:
            raise JoinError(f"{where} is not SPLIT/CLASS/NAME: move the image there")
        row["path"] = "/".join(parts)
        if not (folder / row["path"]).is_file():
            raise JoinError(f"{where} is absent: remove its row, or restore the image")
    return rows


def _count_files(folder: Path) -> int:
    """Count the files of all classes and splits."""
    classes = [folder / split / name for split in SPLITS for name in CLASSES]
    return sum(len(files) for top in classes for _, _, files in os.walk(top))


def _write(
    output: Path, rows: Sequence[dict[str, str]], images: dict[str, Path], hard: bool
) -> None:
    """Link all images, then write the joint manifest with the columns of all."""
    for row in rows:
        link, image = output / row["path"], images[row["path"].casefold()].resolve()
        link.parent.mkdir(parents=True, exist_ok=True)
        if hard:
            link.hardlink_to(image)
        else:
            link.symlink_to(image)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    manifest = output / MANIFEST
    with manifest.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the given data sets. A failure prints one line and exits with code 1."""
    parser = argparse.ArgumentParser(description="Join data sets into one folder of links.")
    parser.add_argument("--hard", action="store_true", help="create hard links, not symbolic links")
    parser.add_argument("output", type=Path, help="the joint folder; must not exist")
    parser.add_argument("folders", type=Path, nargs="+", help="data sets with a manifest.csv")
    given = parser.parse_args(arguments)
    try:
        count = join(given.output, given.folders, given.hard)
    except JoinError as error:
        sys.exit(f"join_faces: {error}")
    print(f"{given.output}: {count} images of {len(given.folders)} data sets")
    for folder in given.folders:
        if unlisted := _count_files(folder) - len(_read(folder)):
            print(f"{folder}: {MANIFEST} omits {unlisted} file(s), which are not joined")


if __name__ == "__main__":
    main()
