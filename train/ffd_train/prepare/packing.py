"""The second pass: pictures are treated and written into shards, each of which appears whole."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ffd_runtime.core.errors import DataError, InputError, OutputError
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.image_header import read_header

from ..shards import INSIDE, Member, Shard
from .matching import draw_quality, match
from .reading import Threads
from .selection import LeftOut, Picture

BLOCK = tarfile.BLOCKSIZE
# Of the file's name in a shard, by format; KEY must have no dot.
KEY_DIGITS = 24


@dataclass(frozen=True)
class Treatment:
    """What is done to every picture.

    Attributes:
        side: pixels of its square.
        quality: lowest and highest of the JPEG.
    """

    side: int
    quality: tuple[int, int]


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: its name, its split, its pictures in order."""

    name: str
    split: str
    pictures: Sequence[Picture]


def plan_shards(splits: dict[str, list[Picture]], images: int) -> list[ShardPlan]:
    """Shards of at most `images` pictures, of about the same length within a split."""
    plans = []
    for split, pictures in splits.items():
        count = -(-len(pictures) // images)
        for n in range(count):
            first, end = (len(pictures) * i // count for i in (n, n + 1))
            plans.append(ShardPlan(f"{split}-{n:06d}.tar", split, pictures[first:end]))
    return plans


def write_shard(
    folder: Path,
    plan: ShardPlan,
    treatment: Treatment | None,
    pool: Threads,
    packed: dict[str, Member],
    advance: Callable[[], None],
) -> tuple[Shard, list[LeftOut]]:
    """Write one shard, or find the one that an earlier run wrote.

    Pictures that differ as files may become the same one; of these, the first is packed.

    Args:
        folder: that takes it.
        plan: what it holds.
        treatment: what is done to its pictures; None to pack each file as it is.
        pool: threads that do it.
        packed: members of the shards before, by the sha256 of their bytes; this one's are added.
        advance: called after every picture.

    Returns:
        The shard, and what it leaves out.

    Raises:
        DataError: a picture has changed since it was read.
        OutputError: the shard cannot be written, or the one that is there is another.
    """
    path = folder / plan.name
    treat = partial(_treat, treatment=treatment)
    left_out: list[LeftOut] = []
    before = len(packed)
    if path.exists():
        for found in _read_back(path, plan, treat, packed):
            if isinstance(found, LeftOut):
                left_out.append(found)
            advance()
    else:
        partial_path = path.with_name(path.name + ".partial")
        try:
            with partial_path.open("wb") as file:
                treated = pool.in_order(treat, plan.pictures)
                for picture, (data, suffix) in zip(plan.pictures, treated, strict=True):
                    advance()
                    if same := packed.get(hashlib.sha256(data).hexdigest()):
                        left_out.append(_leave_out(picture, same))
                        continue
                    name = f"{picture.facts.sha256[:KEY_DIGITS]}"
                    member = _member(plan, picture, f"{name}.{suffix}", data, file.tell() + BLOCK)
                    file.write(_tar_file(f"{name}.{suffix}", data))
                    file.write(_tar_file(f"{name}.json", _describe(member)))
                    packed[member.sha256] = member
                file.write(bytes(2 * BLOCK))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial_path, path)
        except OSError as error:
            raise OutputError(
                f"cannot write {partial_path}: {error.strerror}; the whole shards before it stay, "
                "run the same command again to go on"
            ) from None
    return Shard(plan.name, plan.split, len(packed) - before, path.stat().st_size), left_out


def _leave_out(picture: Picture, same: Member) -> LeftOut:
    reason = "copy" if same.label == picture.entry.label else "both_classes"
    return LeftOut(picture.entry, reason, f"{same.source}: {same.original}")


_ANEW = "remove the --output and run it again"


def _treat(picture: Picture, treatment: Treatment | None) -> tuple[bytes, str]:
    """The bytes to pack, and the suffix of their format."""
    try:
        data = read_file(picture.entry.path)
    except InputError as error:
        raise DataError(f"{picture.entry.path}: {error.message} any more: {_ANEW}") from None
    if hashlib.sha256(data).hexdigest() != picture.facts.sha256:
        raise DataError(f"{picture.entry.path} changed while it was packed: {_ANEW}")
    if treatment is None:
        suffix = read_header(data).format
        return data, {"jpeg": "jpg", "tiff": "tif", "pnm": "ppm"}.get(suffix, suffix)
    quality = draw_quality(picture.facts.sha256, *treatment.quality)
    return match(decode(data), treatment.side, quality), "jpg"


def _member(plan: ShardPlan, picture: Picture, name: str, data: bytes, offset: int) -> Member:
    entry = picture.entry
    return Member(
        path=f"{plan.name}{INSIDE}{name}",
        label=entry.label,
        split=plan.split,
        source=entry.source,
        identity=picture.identity,
        sha256=hashlib.sha256(data).hexdigest(),
        original=entry.name,
        offset=offset,
        size=len(data),
    )


_DESCRIBED = ("label", "source", "identity", "sha256", "original")


def _describe(member: Member) -> bytes:
    return json.dumps({name: getattr(member, name) for name in _DESCRIBED}).encode()


def _tar_file(name: str, data: bytes) -> bytes:
    """A member of a tar, the same whoever writes it and when."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _read_back(
    path: Path,
    plan: ShardPlan,
    treat: Callable[[Picture], tuple[bytes, str]],
    packed: dict[str, Member],
) -> Iterator[Member | LeftOut]:
    """What became of each picture in a shard that an earlier run wrote; packed ones are not read.

    Raises:
        OutputError: it is not the shard that is planned.
    """
    wrong = OutputError(
        f"{path} holds something else: remove it and run this again, or choose another --output"
    )
    try:
        with tarfile.open(path, "r:") as tar:
            infos = tar.getmembers()
            inside = deque(zip(infos[::2], infos[1::2], strict=True))
            for picture in plan.pictures:
                key = picture.facts.sha256[:KEY_DIGITS]
                if inside and inside[0][0].name.split(".")[0] == key:
                    member = _read_member(tar, plan, *inside.popleft())
                    packed[member.sha256] = member
                    yield member
                elif same := packed.get(hashlib.sha256(treat(picture)[0]).hexdigest()):
                    yield _leave_out(picture, same)
                else:
                    raise wrong
            if inside:
                raise wrong
    except (tarfile.TarError, ValueError, TypeError):
        raise wrong from None


def _read_member(
    tar: tarfile.TarFile, plan: ShardPlan, data: tarfile.TarInfo, text: tarfile.TarInfo
) -> Member:
    file = tar.extractfile(text)
    known = json.loads(file.read()) if file else {}
    return Member(
        path=f"{plan.name}{INSIDE}{data.name}",
        split=plan.split,
        offset=data.offset_data,
        size=data.size,
        **known,
    )
