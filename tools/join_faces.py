"""Join data sets of single pictures into one folder of links with a joint manifest.csv.

Each data set is a folder whose manifest.csv lists its pictures (path, label, split, source and
further columns), which lie in train/, val/ and test/ with generated/ and groundtruth/ in each. The
joint folder has the same form, so that ffd-train, ffd-eval and ffd-data take it.

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
    """Why the data sets cannot be joined, in one line."""


def join(output: Path, folders: Sequence[Path], hard: bool = False) -> int:
    """Write the joint folder whole or not at all.

    Args:
        output: the joint folder; must not exist.
        folders: the data sets.
        hard: make hard links, which need one file system, in place of symbolic ones.

    Returns:
        The number of pictures.

    Raises:
        JoinError: a manifest is damaged or names a picture that is absent, two pictures have one
            path, or the folder cannot be written.
    """
    if os.path.lexists(output):
        raise JoinError(f"{output} exists: remove it, or choose another folder")
    rows: list[dict[str, str]] = []
    pictures: dict[str, Path] = {}
    for number, folder in enumerate(folders, 1):
        for row in _read(folder):
            path = row["path"]
            # File systems that ignore case would keep one of the two.
            if other := pictures.get(path.casefold()):
                raise JoinError(f"{folder / path} and {other} have one path: rename one of them")
            pictures[path.casefold()] = folder / path
            if row.get("identity"):
                # Numbers of persons are a data set's own.
                row["identity"] = f"{number}:{row['identity']}"
            rows.append(row)
    partial = output.with_name(output.name + ".partial")
    try:
        partial.mkdir(parents=True)
        try:
            _write(partial, rows, pictures, hard)
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
    """The rows of a data set's manifest; each names a picture that is there."""
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
            raise JoinError(f"{where} is not SPLIT/CLASS/NAME: move the picture there")
        row["path"] = "/".join(parts)
        if not (folder / row["path"]).is_file():
            raise JoinError(f"{where} is absent: remove its row, or restore the picture")
    return rows


def _write(
    output: Path, rows: Sequence[dict[str, str]], pictures: dict[str, Path], hard: bool
) -> None:
    """Link every picture, then write the joint manifest with the columns of all."""
    for row in rows:
        place, picture = output / row["path"], pictures[row["path"].casefold()].resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        if hard:
            place.hardlink_to(picture)
        else:
            place.symlink_to(picture)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    manifest = output / MANIFEST
    with manifest.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Join what the command line names; one line and exit code 1 where that fails."""
    parser = argparse.ArgumentParser(description="Join data sets into one folder of links.")
    parser.add_argument("--hard", action="store_true", help="make hard links, not symbolic ones")
    parser.add_argument("output", type=Path, help="the joint folder; must not exist")
    parser.add_argument("folders", type=Path, nargs="+", help="data sets with a manifest.csv")
    given = parser.parse_args(arguments)
    try:
        count = join(given.output, given.folders, given.hard)
    except JoinError as error:
        sys.exit(f"join_faces: {error}")
    print(f"{given.output}: {count} pictures of {len(given.folders)} data sets")


if __name__ == "__main__":
    main()
