"""The second pass: encode images and write them to shards, each atomically."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ffd_runtime.core.atomic_file import atomic_path
from ffd_runtime.core.errors import DataError, InputError, OutputError
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.image_header import read_header

from ..shards import INSIDE, Member, Shard
from .matching import draw_quality, match
from .reading import OrderedPool
from .selection import LeftOut, Picture

BLOCK = tarfile.BLOCKSIZE
# Hex digits of a member's KEY, which must not contain a dot.
KEY_DIGITS = 24


@dataclass(frozen=True)
class Treatment:
    """The uniform encoding of all images.

    Attributes:
        side: side of the square, in pixels.
        quality: lowest and highest JPEG quality.
    """

    side: int
    quality: tuple[int, int]


@dataclass(frozen=True)
class ShardPlan:
    """A planned shard: its name, split, and images in order."""

    name: str
    split: str
    pictures: Sequence[Picture]


def plan_shards(splits: dict[str, list[Picture]], images: int) -> list[ShardPlan]:
    """Divide the splits into shards of similar length, with at most `images` images each."""
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
    pool: OrderedPool,
    packed: dict[str, Member],
    advance: Callable[[], None],
) -> tuple[Shard, list[LeftOut]]:
    """Write one shard, or read back the one that an interrupted run wrote.

    Different files may be encoded to identical bytes; only the first of them is packed. `packed`
    has the members of all earlier shards by sha256, and those of this shard are added. Without a
    treatment, the original files are packed.

    Returns:
        The shard, and the images that it leaves out.

    Raises:
        DataError: an image has changed since it was read.
        OutputError: the shard cannot be written, or an existing shard does not match the plan.
    """
    path = folder / plan.name
    treat = partial(_treat, treatment=treatment)
    before = len(packed)
    if path.exists():
        results = _read_back(path, plan, treat, packed)
    else:
        results = _write_new(path, plan, pool.in_order(treat, plan.pictures), packed)
    left_out = []
    for result in results:
        if isinstance(result, LeftOut):
            left_out.append(result)
        advance()
    return Shard(plan.name, plan.split, len(packed) - before, path.stat().st_size), left_out


def _write_new(
    path: Path,
    plan: ShardPlan,
    treated: Iterable[tuple[bytes, str]],
    packed: dict[str, Member],
) -> Iterator[Member | LeftOut]:
    """Write a shard; yields the result of each image.

    Raises:
        OutputError: the shard cannot be written.
    """
    partial_path = path.with_name(path.name + ".partial")
    try:
        with atomic_path(path, temporary=partial_path) as draft, draft.open("wb") as file:
            for picture, (data, suffix) in zip(plan.pictures, treated, strict=True):
                if same := packed.get(hashlib.sha256(data).hexdigest()):
                    yield _leave_out(picture, same)
                    continue
                key = picture.facts.sha256[:KEY_DIGITS]
                member = _member(plan, picture, f"{key}.{suffix}", data, file.tell() + BLOCK)
                file.write(_tar_file(f"{key}.{suffix}", data))
                file.write(_tar_file(f"{key}.json", _describe(member)))
                packed[member.sha256] = member
                yield member
            file.write(bytes(2 * BLOCK))
    except OSError as error:
        raise OutputError(
            f"cannot write {partial_path}: {error.strerror}; complete shards are kept, run the "
            "same command to resume"
        ) from None


def _leave_out(picture: Picture, same: Member) -> LeftOut:
    reason = "copy" if same.label == picture.entry.label else "both_classes"
    return LeftOut(picture.entry, reason, f"{same.source}: {same.original}")


_START_OVER = "remove the --output folder and run the command again"


def _treat(picture: Picture, treatment: Treatment | None) -> tuple[bytes, str]:
    """Return the bytes to pack, and the suffix of their format."""
    try:
        data = read_file(picture.entry.path)
    except InputError as error:
        raise DataError(
            f"{picture.entry.path} can no longer be read ({error.message}): {_START_OVER}"
        ) from None
    if hashlib.sha256(data).hexdigest() != picture.facts.sha256:
        raise DataError(f"{picture.entry.path} changed while it was packed: {_START_OVER}")
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
        family=entry.family,
    )


_DESCRIBED = ("label", "source", "identity", "sha256", "original", "family")


def _describe(member: Member) -> bytes:
    return json.dumps({name: getattr(member, name) for name in _DESCRIBED}).encode()


def _tar_file(name: str, data: bytes) -> bytes:
    """Return a member of a tar, independent of user and time."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _read_back(
    path: Path,
    plan: ShardPlan,
    treat: Callable[[Picture], tuple[bytes, str]],
    packed: dict[str, Member],
) -> Iterator[Member | LeftOut]:
    """Read back a shard of an interrupted run, without its images; yields each image's result.

    Raises:
        OutputError: the shard does not match the plan.
    """
    wrong = OutputError(
        f"{path} does not match these inputs: remove it and run the command again, or choose "
        "another --output"
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
