"""The modules of ffd-run --ray without Ray: storage, parts, plan and stages."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ffd_cluster import output_parts, ray_pipeline
from ffd_cluster import storage as storages
from ffd_cluster.cluster_inputs import find_inputs
from ffd_cluster.cluster_program import ClusterOptions, _start
from ffd_cluster.cluster_run import make_tables
from ffd_cluster.object_address import require_no_credentials
from ffd_cluster.output_parts import COUNTS, MAX_PARALLEL_READS, Parts, part_name
from ffd_cluster.plan import Plan
from ffd_cluster.seen_inputs import Seen, identify
from ffd_cluster.stages import (
    Infer,
    Model,
    _isolating,
    describe_model,
    prepare_block,
    write_block,
)
from ffd_cluster.storage import Storage, storage_of
from ffd_cluster.store_errors import UNREACHABLE
from ffd_runtime import Classifier
from ffd_runtime.core.errors import (
    DeviceError,
    FfdError,
    InputError,
    ModelError,
    OutputError,
    StorageError,
)
from ffd_runtime.core.pipeline import Prepared
from ffd_runtime.core.results import Label, Result
from ffd_runtime.image.faces import Face
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model import devices
from ffd_runtime.model.card import ModelCard, PreprocessSpec
from ffd_runtime.outputs.jsonlines import to_line
from ffd_runtime.outputs.parquet_file import to_parquet
from ffd_runtime.outputs.provenance import RunProvenance

from ..cluster import KEY, S3Server
from ..conftest import picture
from ..nightly import examples
from ..servers import free_port

# Results of os.fsdecode: any text, with undecodable bytes as surrogates.
names = st.binary(min_size=1).map(os.fsdecode)
ORIGIN = RunProvenance("colour (fp32)", "12", {"size": 299}, "34")


# --- seen inputs --------------------------------------------------------------------------------


@given(st.lists(st.lists(names | st.sampled_from(["a", "b", "\udcff", "ü", "a\0"]), max_size=20)))
def test_seen_agrees_with_a_set(waves: list[list[str]]) -> None:
    seen, known = Seen(), set[str]()
    for wave in waves:
        expected = []
        before = set(known)
        for name in wave:
            expected.append(name not in before)
            before.add(name)
        assert seen.find_new(wave) == expected
        # A query changes nothing.
        assert seen.find_new(wave) == expected
        # Rows of faces repeat the name of their image.
        seen.add([name for name in wave if name not in known])
        known |= set(wave)
        assert len(seen) == len(known)
        assert not any(seen.find_new(known))


def test_an_id_that_ends_in_zero_bytes_is_found() -> None:
    # numpy strips trailing zero bytes; some of these ids have them.
    sources = [f"{number}" for number in range(3000)]
    assert any(identify(source).endswith(b"\0") for source in sources)
    seen = Seen()
    seen.add(sources)
    assert len(seen) == 3000
    assert not any(seen.find_new(sources))


@given(st.sets(names, min_size=1, max_size=8), st.randoms(), names)
def test_a_part_is_named_after_its_inputs(sources: set[str], rng: Any, other: str) -> None:
    ordered = sorted(sources)
    shuffled = list(ordered)
    rng.shuffle(shuffled)
    assert part_name(shuffled) == part_name(ordered)
    ids = set(map(identify, sources))
    assume(identify(other) not in ids)
    assert part_name([*ordered, other]) != part_name(ordered)
    assert part_name([*ordered[1:], other]) != part_name(ordered)


# --- parts --------------------------------------------------------------------------------------


def put_part(folder: Path, *sources: str, label: Label = "generated") -> str:
    """Write a part as a machine of a cluster does."""
    lines = [to_line(Result(source, label=label, score=0.9)) for source in sources]
    name = part_name(sources)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(to_parquet(lines))
    return name


def parts_of(folder: Path) -> Parts:
    return Parts(str(folder), Storage("file"))


def begin(folder: Path, resume: bool = False, origin: RunProvenance = ORIGIN) -> tuple[Parts, Seen]:
    parts = parts_of(folder)
    return parts, parts.begin(origin, resume)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_resumes_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts, seen = begin(out)
    assert (len(seen), files_in(out)) == (0, {"_origin.json"})
    first = put_part(out, "a", "b")
    parts.add(first, 2, put_counts(generated=2))
    second = put_part(out, "c", "\udcff", label="unsure")
    parts.add(second, 2, put_counts(unsure=2))
    parts.add(second, 2, put_counts(unsure=2))
    parts.finish()
    success = json.loads((out / "_SUCCESS").read_text())
    assert success["inputs"] == success["rows"] == 4
    assert (success["generated"], success["unsure"], success["errors"]) == (2, 2, 0)

    with pytest.raises(OutputError, match="continue with --resume, or give another --output"):
        begin(out)
    # The refused run changed nothing.
    assert (out / "_SUCCESS").exists()
    parts, seen = begin(out, resume=True)
    assert not (out / "_SUCCESS").exists()
    assert (parts.inputs, parts.counts["generated"], parts.counts["unsure"]) == (4, 2, 2)
    assert seen.find_new(["a", "b", "c", "\udcff", "d"]) == [False] * 4 + [True]


def test_earlier_parts_are_read_as_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"part-{number}" for number in range(200)]
    read: list[str] = []

    def rows(parts: Parts, name: str) -> dict[str, list[Any]]:
        read.append(name)
        return {"source": []}

    monkeypatch.setattr(Parts, "_rows", rows)
    parts, _ = begin(tmp_path / "out")
    found = parts._read_parts(names)
    assert next(found)[0] == names[0]
    # Enough for other threads to read all of them.
    time.sleep(0.2)
    assert len(read) <= 2 * MAX_PARALLEL_READS
    assert [name for name, _ in found] == names[1:]


def put_counts(**kinds: int) -> Counter[str]:
    return Counter({kind: kinds.get(kind, 0) for kind in COUNTS})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_sha256": "99", "model": "other (fp32)"}, "by the model colour"),
        ({"preprocess": {"size": 224}}, "with other preprocessing"),
    ],
)
def test_parts_of_another_model_are_not_changed(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    begin(tmp_path)
    put_part(tmp_path, "a")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=said):
        begin(tmp_path, resume=True, origin=replace(ORIGIN, **changed))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resumed_run_may_have_more_sources(tmp_path: Path) -> None:
    begin(tmp_path)
    put_part(tmp_path, "a")
    assert len(begin(tmp_path, resume=True, origin=replace(ORIGIN, sources_sha256="9"))[1]) == 1


@pytest.mark.parametrize("text", [None, b"", b"{", b"[]", b"\xff", b'{"model": "x"}'])
def test_parts_without_a_valid_origin_are_refused(tmp_path: Path, text: bytes | None) -> None:
    put_part(tmp_path, "a")
    if text is not None:
        (tmp_path / "_origin.json").write_bytes(text)
    with pytest.raises(OutputError, match="does not describe the run"):
        begin(tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_foreign_files_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "holiday\x1b.jpg").touch()
    with pytest.raises(OutputError, match=r"contains holiday\\x1b.jpg, which no run wrote"):
        begin(tmp_path, resume=resume)
    assert files_in(tmp_path) == {"holiday\x1b.jpg"}


def test_a_part_that_overlaps_another_is_deleted(tmp_path: Path) -> None:
    begin(tmp_path)
    put_part(tmp_path, "a", "b")
    put_part(tmp_path, "b", "c")
    put_part(tmp_path, "d")
    parts, seen = begin(tmp_path, resume=True)
    assert parts.inputs == len(seen) == 3
    kept = pyarrow.parquet.read_table(tmp_path)["source"].to_pylist()
    assert sorted(kept) in (["a", "b", "d"], ["b", "c", "d"])


def test_a_part_of_a_failed_attempt_counts_if_all_its_inputs_are_pending(tmp_path: Path) -> None:
    parts, _ = begin(tmp_path)
    told = put_part(tmp_path, "a", "b")
    parts.add(told, 2, put_counts(generated=2))
    silent = put_part(tmp_path, "c", "d", label="groundtruth")
    overlapping = put_part(tmp_path, "b", "e")
    strange = put_part(tmp_path, "f", "nobody asked for this")
    pending = set(map(identify, "abcdef"))
    assert parts.recover([told], pending) == set(map(identify, "abcd"))
    assert files_in(tmp_path) == {"_origin.json", told, silent}
    assert not {overlapping, strange} & files_in(tmp_path)
    assert (parts.inputs, parts.counts["generated"], parts.counts["groundtruth"]) == (4, 2, 2)


def test_finish_deletes_late_parts(tmp_path: Path) -> None:
    parts, _ = begin(tmp_path)
    told = put_part(tmp_path, "a", "b")
    parts.add(told, 2, put_counts(generated=2))
    put_part(tmp_path, "a")
    parts.finish()
    assert files_in(tmp_path) == {"_origin.json", "_SUCCESS", told}


@pytest.mark.parametrize("what", ["finish", "recover"])
def test_a_run_stops_when_another_takes_over_the_folder(tmp_path: Path, what: str) -> None:
    ours, _ = begin(tmp_path)
    ours.require_ours()
    begin(tmp_path)
    theirs = put_part(tmp_path, "a")
    with pytest.raises(OutputError, match="another run has started to write"):
        ours.finish() if what == "finish" else ours.recover([], set())
    assert files_in(tmp_path) == {"_origin.json", theirs}


def test_a_deleted_origin_is_an_output_error(tmp_path: Path) -> None:
    ours, _ = begin(tmp_path)
    (tmp_path / "_origin.json").unlink()
    with pytest.raises(OutputError, match="_origin.json"):
        ours.finish()


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_damaged_part_is_a_one_line_error(tmp_path: Path, left: int) -> None:
    begin(tmp_path)
    part = tmp_path / put_part(tmp_path, "a", "b")
    part.write_bytes(part.read_bytes()[:left])
    with pytest.raises(
        OutputError, match=f"{part.name} is not a Parquet file of a run .*remove it"
    ) as got:
        begin(tmp_path, resume=True)
    assert "\n" not in str(got.value)


def test_a_part_with_other_columns_is_an_error(tmp_path: Path) -> None:
    begin(tmp_path)
    name = put_part(tmp_path, "a")
    pa.parquet.write_table(pa.table({"path": ["a"]}), tmp_path / name)
    with pytest.raises(OutputError, match=name):
        begin(tmp_path, resume=True)


def test_a_folder_that_machines_do_not_share_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_parts, "MAX_LISTING_DELAY_S", 0.2)
    monkeypatch.setattr(output_parts, "LISTING_INTERVAL_S", 0.05)
    parts, _ = begin(tmp_path / "out")
    parts.add(put_part(tmp_path / "out", "a"), 1, put_counts(generated=1))
    # Another machine wrote it to a folder of the same name.
    late = put_part(tmp_path / "other disk", "b")
    parts.add(late, 1, put_counts(generated=1))
    with pytest.raises(OutputError, match="1 of 2 files are not in .*that all machines share"):
        parts.finish()
    assert not (tmp_path / "out/_SUCCESS").exists()
    # A network file system lists the file of another machine later.
    monkeypatch.setattr(output_parts, "MAX_LISTING_DELAY_S", 30)
    move = (tmp_path / "other disk" / late).rename
    timer = threading.Timer(0.1, move, [tmp_path / "out" / late])
    timer.start()
    parts.finish()
    timer.join()
    assert json.loads((tmp_path / "out/_SUCCESS").read_text())["rows"] == 2


def test_every_stage_needs_the_version_of_the_command(tmp_path: Path) -> None:
    spec, storage = PreprocessSpec(), Storage("file")
    for stage in (
        partial(prepare_block, None, spec, 1, {}),
        partial(write_block, None, str(tmp_path), storage),
    ):
        with pytest.raises(ModelError, match="has ffd-edge .*, and this machine has 0.0.9"):
            stage(version="0.0.9")


def test_a_run_resumes_after_a_kill_during_its_first_write(tmp_path: Path) -> None:
    begin(tmp_path)
    half = tmp_path / f"{storages.DRAFT_PREFIX}1234-{part_name(['a'])}"
    half.write_bytes(b"PAR1 and no more")
    parts, seen = begin(tmp_path, resume=True)
    assert len(seen) == 0
    parts.add(put_part(tmp_path, "a"), 1, put_counts(generated=1))
    parts.finish()
    # The draft must not disturb readers of the folder.
    assert pyarrow.parquet.read_table(tmp_path)["source"].to_pylist() == ["a"]


def test_a_refused_run_leaves_the_drafts_of_a_run_that_writes(tmp_path: Path) -> None:
    begin(tmp_path)
    put_part(tmp_path, "a")
    draft = tmp_path / f"{storages.DRAFT_PREFIX}1234-{part_name(['b'])}"
    draft.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="continue with --resume"):
        begin(tmp_path)
    assert draft.exists()


# --- local folders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with space",
        "ünï",
        "100%",
        "a#b?c",
        "new\nline",
        pytest.param(os.fsdecode(b"\xff\xfe")),
    ],
)
def test_a_local_file_of_any_name_is_written(tmp_path: Path, name: str) -> None:
    # Paths are relative to the working folder of the command, not of the machine.
    storage = Storage("file", root=str(tmp_path))
    storage.create_folder("out")
    storage.create_folder("out")
    storage.write("out", name, b"first")
    storage.write("out", name, b"second")
    assert (tmp_path / "out" / name).read_bytes() == b"second"
    assert storage.read(f"out/{name}") == storage.read(f"{tmp_path}/out/{name}") == b"second"
    assert storage.names("out") == [name]
    storage.delete("out", name)
    storage.delete("out", name)
    assert storage.names("out") == storage.names("nowhere") == []


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Limit the size of files, so that writing fails half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    storage = Storage("file", root=str(tmp_path))
    storage.write(".", "part", b"whole")
    reason = os.strerror(errno.EFBIG)
    with (
        small_files(1000),
        pytest.raises(OutputError, match=f"^cannot write ./part: {reason}$"),
    ):
        storage.write(".", "part", b"-" * 5000)
    assert files_in(tmp_path) == {"part"}
    assert (tmp_path / "part").read_bytes() == b"whole"


@pytest.mark.parametrize("what", ["file", "below a file"])
def test_an_output_that_is_a_file_is_an_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / ("file" if what == "file" else "file/out")
    with pytest.raises(OutputError, match="^cannot write .*file"):
        begin(folder)


# --- addresses ----------------------------------------------------------------------------------

# The characters of keys and secrets.
keys = st.text("ABCXYZ234567", min_size=16, max_size=20)
secrets = st.text("ABCXYZabcxyz0189+/", min_size=12, max_size=40)


@given(keys, secrets, st.sampled_from(["s3", "gs", "S3"]), st.sampled_from(["/", "/a@b/c", ""]))
def test_credentials_in_an_address_are_refused_and_not_shown(
    key: str, secret: str, scheme: str, rest: str
) -> None:
    address = f"{scheme}://{key}:{secret}@bucket{rest}"
    for read in (Storage.of, storage_of, lambda one: list(find_inputs([one], "out"))):
        with pytest.raises(StorageError) as refused:
            read(address)
        said = str(refused.value)
        for told in (key, secret, *secret.split("/")):
            assert len(told) < 5 or told not in said


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a.jpg?X-Amz-Credential=x&X-Amz-Signature=Hunter2",
        "gs://bucket/a.jpg?X-Goog-Signature=Hunter2",
        "s3://bucket?access_key=x&secret_key=Hunter2",
    ],
)
def test_a_pre_signed_object_is_refused_and_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError) as refused:
        list(find_inputs([address], "out"))
    assert "Hunter2" not in str(refused.value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(address.encode())))
    (item,) = find_inputs(["-"], "out")
    assert item.error
    assert "Hunter2" not in repr((item, item.error))


def test_a_folder_that_looks_like_a_parameter_is_accepted() -> None:
    require_no_credentials("s3://bucket/user=5/token=x/a.jpg")


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://b", "gs://-x/", "s3://a b/"])
def test_an_address_needs_a_bucket(address: str) -> None:
    with pytest.raises(StorageError, match="give a bucket, such as "):
        Storage.of(address)


def test_a_storage_has_the_endpoint_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-to-be-seen")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-south-1")
    storage = Storage.of("s3://bucket/x")
    assert storage == Storage("s3", "http://127.0.0.1:9", "eu-south-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:7")
    assert Storage.of("S3://bucket").endpoint == "http://127.0.0.1:7"


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("pictures", "pictures/out"),
        ("./pictures", "pictures/out"),
        ("pictures", "./pictures/out/"),
        ("{here}/pictures", "pictures/out"),
        ("pictures", "{here}/pictures/out"),
        pytest.param("pictures", "{here}/link/out"),
    ],
)
def test_rows_are_not_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    put_part(tmp_path / "pictures" / "out", "a")
    (tmp_path / "pictures" / "a.jpg").touch()
    (tmp_path / "pictures" / "outing.jpg").touch()
    (tmp_path / "link").symlink_to("pictures")
    source, output = (text.format(here=tmp_path) for text in (source, output))
    found = [os.path.basename(item.source) for item in find_inputs([source], output)]
    assert found == ["a.jpg", "outing.jpg"]


@pytest.mark.parametrize("output", [".", "{here}", "{here}/"])
def test_an_output_beside_or_above_images_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").touch()
    for source in ("pictures", str(tmp_path / "pictures")):
        assert len(list(find_inputs([source], output.format(here=tmp_path)))) == 1


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_a_list_has_the_same_inputs_as_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("a.jpg", "b.jpg", "below/c.jpg"):
        (tmp_path / name).touch()
    lines = ["a.jpg", "*.jpg", "none[1].jpg", "below", "-", "b.jpg"]
    (tmp_path / "list").write_text(end.join(lines))
    found = []
    for machines in (True, False):
        with (tmp_path / "list").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            null = end == "\0"
            items = find_inputs(["-"], "out", null) if machines else find_files(["-"], null=null)
            found.append([(item.source, item.error and item.error.code) for item in items])
    assert found[0] == found[1]


def test_a_file_may_have_the_name_of_a_local_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    given: dict[str, Any] = dict.fromkeys(
        ["model", "output", "faces", "face_model", "min_face", "actors"]
    )
    given |= {"backend": "auto", "device": "cpu", "null": False, "resume": False}
    given |= {"part": 1, "batch": 1, "max_pixels": 1}
    options = partial(ClusterOptions, **given)
    assert options(ray="local").address is None
    with pytest.raises(click.UsageError, match="put SOURCEs before --ray"):
        options(ray="./local")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_auto_uses_cpus_if_the_model_starts_on_no_gpu(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if devices.count_gpus():
        pytest.skip("needs a machine whose GPUs cannot be used")

    def try_here(_: Any, model: Model, plan: Plan) -> tuple[str, ModelCard]:
        description, card = describe_model(model, plan.cores)
        return description, ModelCard.from_json(card)

    monkeypatch.setattr(ray_pipeline, "try_model", try_here)
    given: dict[str, Any] = dict.fromkeys(field.name for field in fields(ClusterOptions))
    given |= {"ray": "local", "backend": "auto", "device": device, "resume": False}
    options = ClusterOptions(**given | {"part": 1, "batch": 1, "max_pixels": 1})
    ray = SimpleNamespace(__version__="2", nodes=lambda: [machine(4, 1)])
    arguments = (ray, options, device, str(tmp_path / "out"), None)
    if device == "cuda":
        with pytest.raises(DeviceError):
            _start(*arguments)
        return
    plan, work, _ = _start(*arguments)
    assert (plan.device, work.model.device) == ("cpu", "cpu")
    assert "does not start on a GPU of the cluster: using CPUs" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["{here}/some.zip", "http://127.0.0.1/a.jpg"])
def test_archives_and_web_addresses_are_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    shutil.make_archive(str(tmp_path / "some"), "zip", tmp_path / "in")
    with pytest.raises(FfdError, match=r"(some.zip!/|a.jpg).*archives.*: run without --ray$"):
        list(find_inputs([source.format(here=tmp_path)], "out"))


# --- plans --------------------------------------------------------------------------------------


def machine(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return {"Alive": alive, "Resources": {k: v for k, v in resources.items() if v}}


@pytest.mark.parametrize(
    ("machines", "device", "actors", "expected"),
    [
        ([machine(4)], "auto", None, (1, 4, 0, 4, "cpu")),
        ([machine(4), machine(2)], "cpu", None, (2, 6, 0, 6, "cpu")),
        ([machine(4), machine(2, alive=False)], "auto", None, (1, 4, 0, 4, "cpu")),
        ([machine(4)], "auto", 2, (1, 4, 0, 2, "cpu")),
        ([machine(8, 2), machine(8)], "auto", None, (2, 16, 2, 2, "cuda")),
        ([machine(8, 2), machine(8, 2)], "cuda", 3, (2, 16, 4, 3, "cuda")),
        ([machine(8, 2)], "cpu", None, (1, 8, 2, 8, "cpu")),
        ([machine(0), machine(4)], "auto", None, (2, 4, 0, 4, "cpu")),
        # A head without resources counts as a machine.
        ([machine(8, 2, alive=False), machine(8)], "auto", None, (1, 8, 0, 8, "cpu")),
    ],
)
def test_a_plan_uses_the_machines_that_are_alive(
    machines: list[dict[str, Any]], device: str, actors: int | None, expected: tuple[Any, ...]
) -> None:
    plan = Plan.of(machines, device, actors)
    assert (plan.nodes, plan.cpus, plan.gpus, plan.actors, plan.device) == expected
    assert plan.inference.get("num_gpus", 0) == (1 if plan.device == "cuda" else 0)
    # Actors and the tasks that prepare must fit at the same time, or the run would hang.
    if plan.device == "cpu":
        assert plan.cores * plan.actors <= max(plan.cpus, plan.actors)
        assert plan.actors * plan.inference["num_cpus"] + plan.preparation_cpus <= plan.cpus
    else:
        # They also fit on a machine with a GPU and a single core.
        assert plan.inference["num_cpus"] + plan.preparation_cpus <= 1


@pytest.mark.parametrize(
    ("machines", "device", "actors"),
    [
        ([machine(4)], "cuda", None),
        ([machine(4, 1, alive=False), machine(4)], "cuda", None),
        ([machine(0)], "auto", None),
        ([], "auto", None),
    ],
)
def test_a_plan_without_the_device_is_refused(
    machines: list[dict[str, Any]], device: str, actors: int | None
) -> None:
    with pytest.raises(DeviceError):
        Plan.of(machines, device, actors)


@pytest.mark.parametrize("actors", [4, pytest.param(8)])
def test_actors_leave_cores_for_the_other_stages(actors: int) -> None:
    try:
        plan = Plan.of([machine(2)], "auto", actors)
    except FfdError as error:
        assert "--actors" in str(error)
        return
    held = plan.actors * plan.inference["num_cpus"]
    assert held + plan.preparation_cpus <= plan.cpus


# --- the stages ---------------------------------------------------------------------------------


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Valid and damaged images, with names of all kinds."""
    folder = tmp_path / "night"
    (folder / "below").mkdir(parents=True)
    ok, encoded = cv2.imencode(".jpg", picture("red", 90, 70))
    assert ok
    jpeg = encoded.tobytes()
    for number in range(5):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), picture(("red", "blue")[number % 2], 80 + number, 64, seed=number))
    (folder / os.fsdecode(b"bytes-\xff.jpg")).write_bytes(jpeg)
    (folder / "new\nline \u2028 ü.jpg").write_bytes(jpeg)
    (folder / "below" / "s3:").mkdir()
    (folder / "below" / "s3:" / "a%20b.jpg").write_bytes(jpeg)
    (folder / "cut.jpg").write_bytes(jpeg[:300])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no picture")
    (folder / "nowhere.jpg").symlink_to("gone")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "round").symlink_to(".")
    os.mkfifo(folder / "pipe.jpg")
    return folder


def in_stages(items: list[Item], model: Path, out: Path, detector: Any = None) -> Any:
    """Run the stages in this process over several blocks, and return the last table."""
    spec = PreprocessSpec()
    plan = Plan.of([machine(2)], "cpu")
    places = {"": Storage("file", root=os.getcwd())}
    infer = Infer(Model.read(model, "auto", "cpu"), batch=4, cores=1)
    blocks = [
        infer(prepare_block(table, spec, 1 << 27, places, detector))
        for table in make_tables(items, plan)
    ]
    assert detector or len(blocks) > 1
    storage = Storage("file")
    storage.create_folder(str(out))
    return write_block(pa.concat_tables(blocks).combine_chunks(), str(out), storage)


def test_the_stages_return_the_rows_of_one_machine(
    night: Path, colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["night", "nothing-here", "none*.jpg", str(night / "0.png")]
    items = list(find_inputs(sources, "out"))
    told = in_stages(items, colour_model, tmp_path / "out").to_pylist()
    with Classifier.open(colour_model, device="cpu", batch=4) as classifier:
        lines = [to_line(result) for result in classifier.classify_files(*sources)]
    expected = pyarrow.parquet.read_table(pa.BufferReader(to_parquet(lines))).to_pylist()
    rows = pyarrow.parquet.read_table(tmp_path / "out" / told[0]["part"]).to_pylist()
    # All but notes.txt, which is not an image.
    assert len(rows) == len(expected) == 17
    for row, want in zip(rows, expected, strict=True):
        assert row.pop("score") == pytest.approx(want.pop("score"), abs=2e-6)
        assert row == want
    assert told[0]["skipped"] == [b"night/notes.txt"]
    assert told[0]["inputs"] == 17
    assert sum(told[0][kind] for kind in COUNTS) == 17
    assert told[0]["errors"] == sum(row["error"] is not None for row in rows) == 8
    pictures = [item.source for item in items if item.source != "night/notes.txt"]
    assert part_name(pictures) == told[0]["part"]


def test_inputs_without_images_write_no_part(
    colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.json").write_text("{}")
    (told,) = in_stages(
        list(find_inputs(["in"], "out")), colour_model, tmp_path / "out"
    ).to_pylist()
    assert (told["part"], told["inputs"], len(told["skipped"])) == ("", 0, 9)
    assert files_in(tmp_path / "out") == set()


class TwoFaces:
    """A detector that finds two faces in wide images, the second too small, and none in others."""

    def detect(self, image: Any) -> list[Face]:
        if image.shape[1] < 100:
            return []
        eyes = np.zeros((5, 2), np.float32)
        return [Face((0, 0, 40, 40), 0.9, eyes), Face((60, 20, 40, 40), 0.8, eyes, "small")]


def test_faces_stay_with_their_image(colour_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(6):
        image = picture("red", 90, 64 + 60 * (number % 2), seed=number)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    items = list(find_inputs([str(folder)], "out"))
    (told,) = in_stages(items, colour_model, tmp_path / "out", TwoFaces()).to_pylist()
    assert (told["inputs"], told["generated"], told["unsure"], told["errors"]) == (6, 3, 3, 3)
    rows = pyarrow.parquet.read_table(tmp_path / "out" / told["part"]).to_pylist()
    seen = [(Path(row["source"]).stem, row["face"], row["reason"], row["error"]) for row in rows]
    assert [one[0] for one in seen] == ["0", "1", "1", "2", "3", "3", "4", "5", "5"]
    assert seen[1][1:] == ([0, 0, 40, 40], None, None)
    assert seen[2][1:] == ([60, 20, 40, 40], "small", None)
    assert seen[0][3]["code"] == "no_face"


def test_an_unreadable_input_has_an_error_row(colour_model: Path, tmp_path: Path) -> None:
    items = [Item("a\0b"), Item("x" * 5000), Item("bad", InputError("corrupt", "known \udcff"))]
    (told,) = in_stages(items, colour_model, tmp_path / "out").to_pylist()
    rows = pyarrow.parquet.read_table(tmp_path / "out" / told["part"]).to_pylist()
    assert [row["source"] for row in rows] == ["a\0b", "x" * 5000, "bad"]
    assert rows[2]["error"] == {"code": "corrupt", "message": "known \\udcff"}
    assert told["errors"] == 3


ABORTS = """
import os
from ffd_runtime.core.pipeline import prepare_views

def work(item, spec):
    if item.source.endswith("killer.png"):
        os.abort()
    return prepare_views(item, spec)
"""


def test_an_image_that_crashes_the_process_fails_only_itself(
    portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "aborting.py").write_text(ABORTS)
    monkeypatch.syspath_prepend(tmp_path / "module")
    work = partial(import_module("aborting").work, spec=PreprocessSpec())
    shutil.copy(portraits / "0-red.png", portraits / "0-killer.png")
    paths = sorted(map(str, portraits.iterdir()))
    with _isolating(work) as guarded:
        done = [guarded(Item(path)) for path in paths]
    kinds = [views[0].image for views in done]
    assert [isinstance(kind, InputError) for kind in kinds] == [True, False, False, False]
    assert isinstance(kinds[0], InputError)
    assert kinds[0].code == "corrupt"
    want: list[Prepared] = work(Item(paths[3]))
    assert np.array_equal(np.asarray(kinds[3]), np.asarray(want[0].image))


def test_a_machine_with_another_version_is_refused(colour_model: Path) -> None:
    model = replace(Model.read(colour_model, "auto", "cpu"), version="0.0.1")
    with pytest.raises(FfdError, match="install the same version on all machines"):
        Infer(model, batch=1, cores=1)


# --- an object store ----------------------------------------------------------------------------

KEYS = [
    "in/a.jpg",
    "in/a.jpg/below.jpg",
    "in/b c.jpg",
    "in/100%.jpg",
    "in/%2F.jpg",
    "in/a+b&c;d.jpg",
    "in/x?y#z.jpg",
    "in/ü/ñ.jpg",
    "in/deep/er/1.jpg",
]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    server.create("odd", ((key, key.encode()) for key in [*KEYS, "in2/z.jpg"]))
    yield server
    server.close()


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    use(server.environment, monkeypatch)
    return Storage.of("s3://odd/")


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials, and close clients that use others."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storages._open.cache_clear()
    storage_of.cache_clear()


@pytest.mark.parametrize("source", ["s3://odd/in", "s3://odd/in/", "S3://odd/in/"])
def test_a_prefix_is_listed_like_a_folder(store: Storage, source: str) -> None:
    found = [item.source for item in find_inputs([source], "out")]
    assert sorted(found) == sorted(f"s3://odd/{key}" for key in KEYS)
    for address in found:
        assert store.read(address) == address.removeprefix("s3://odd/").encode()


def test_a_bucket_an_object_and_a_missing_prefix_as_sources(store: Storage) -> None:
    everything = [item.source for item in find_inputs(["s3://odd"], "out")]
    assert sorted(everything) == sorted(f"s3://odd/{key}" for key in [*KEYS, "in2/z.jpg"])
    one = "s3://odd/in/100%.jpg"
    assert [item.source for item in find_inputs([one], "out")] == [one]
    one = "s3://odd/in/a.jpg"
    assert [item.source for item in find_inputs([one], "out")] == [one]
    below = [item.source for item in find_inputs([f"{one}/"], "out")]
    assert below == [f"{one}/below.jpg"]
    (none,) = find_inputs(["s3://odd/nothing/"], "out")
    assert none.error
    assert none.error.code == "not_found"


@pytest.mark.parametrize(
    "output",
    [
        "s3://odd/in/deep/",
        "s3://odd/in/deep",
        pytest.param("S3://odd/in/deep"),
    ],
)
def test_rows_in_a_bucket_are_not_inputs(store: Storage, output: str) -> None:
    for name in (part_name(["a"]), "_origin.json", "_SUCCESS"):
        store.write("s3://odd/in/deep", name, b"rows")
    found = [item.source for item in find_inputs(["s3://odd/in/"], output)]
    elsewhere = list(find_inputs(["s3://odd/in/"], "s3://odd/out/"))
    for name in (part_name(["a"]), "_origin.json", "_SUCCESS"):
        store.delete("s3://odd/in/deep", name)
    assert sorted(found) == sorted(f"s3://odd/{key}" for key in KEYS)
    assert len(elsewhere) == len(KEYS) + 3


@pytest.mark.parametrize("output", ["s3://odd", "s3://odd/"])
def test_an_output_at_the_top_of_a_bucket_hides_no_inputs(store: Storage, output: str) -> None:
    assert len(list(find_inputs(["s3://odd/in/"], output))) == len(KEYS)


@pytest.mark.parametrize("key", ["in//x.jpg", "/x.jpg", "in/x.jpg//"])
def test_keys_that_are_not_paths_are_rows_or_an_error(
    server: S3Server, store: Storage, key: str
) -> None:
    bucket = f"strange-{identify(key).hex()[:8]}"
    server.create(bucket, [(key, b"x"), ("in/good.jpg", b"good")])
    try:
        found = [item.source for item in find_inputs([f"s3://{bucket}/"], "out")]
    except FfdError as error:
        assert bucket in str(error)
        assert "\n" not in str(error)
        return
    assert f"s3://{bucket}/in/good.jpg" in found
    for address in found:
        try:
            assert store.read(address) in (b"x", b"good")
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("s3://odd/in/nothing.jpg", "not_found"),
        ("s3://odd/in/deep", "not_found"),
        ("s3://odd/", "read_failed"),
        pytest.param("s3://odd/in/\udcff.jpg", None),
        pytest.param("s3://odd//a.jpg", None),
        ("s3://odd/a\0b.jpg", None),
    ],
)
def test_an_unreadable_object_is_an_input_error(
    store: Storage, address: str, code: str | None
) -> None:
    with pytest.raises(InputError) as failed:
        store.read(address)
    assert code in (None, failed.value.code)
    assert "AWS Error" not in str(failed.value)


def test_objects_are_written_listed_and_deleted(server: S3Server, store: Storage) -> None:
    server.create("rows")
    for data in (b"first", b"second", b""):
        store.write("s3://rows/out/", "part", data)
        assert store.read("s3://rows/out/part") == data
    assert store.names("s3://rows/out") == store.names("s3://rows/out/") == ["part"]
    assert store.names("s3://rows/nothing/") == []
    store.delete("s3://rows/out/", "part")
    store.delete("s3://rows/out/", "part")
    assert server.names("rows", "out/") == []


@pytest.mark.parametrize("resume", [False, True])
def test_parts_are_written_to_a_bucket(
    server: S3Server, store: Storage, tmp_path: Path, resume: bool
) -> None:
    bucket = f"parts-{resume}".lower()
    server.create(bucket)
    parts = Parts(f"s3://{bucket}/out", store)
    parts.begin(ORIGIN, resume=False)
    name = put_part(tmp_path, "a", "b")
    store.write(f"s3://{bucket}/out", name, (tmp_path / name).read_bytes())
    parts.add(name, 2, put_counts(generated=2))
    parts.finish()
    assert set(server.names(bucket, "out/")) == {"_SUCCESS", "_origin.json", name}
    again = Parts(f"s3://{bucket}/out/", store)
    if resume:
        assert len(again.begin(ORIGIN, resume)) == again.inputs == 2
    else:
        with pytest.raises(OutputError, match="--resume"):
            again.begin(ORIGIN, resume)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: list(find_inputs(["s3://no-such-bucket/in/"], "out")),
        lambda store: Parts("s3://no-such-bucket/out/", store).begin(ORIGIN, resume=False),
        lambda store: store.write("s3://no-such-bucket/out/", "part", b"x"),
    ],
)
def test_a_missing_bucket_is_a_one_line_error(
    store: Storage, act: Callable[[Storage], object]
) -> None:
    with pytest.raises(FfdError, match="no-such-bucket.*: there is no such bucket; check") as error:
        act(store)
    assert "\n" not in str(error.value)


def test_an_unknown_access_key_is_a_one_line_error(server: S3Server, store: Storage) -> None:
    with server.checking_keys():
        for act in (
            lambda: list(find_inputs(["s3://odd/in/"], "out")),
            lambda: store.read("s3://odd/in/a.jpg"),
            lambda: store.write("s3://odd/out/", "part", b"x"),
        ):
            with pytest.raises(FfdError, match="check the bucket's name, AWS_") as error:
                act()
            assert not isinstance(error.value, InputError)
            assert "\n" not in str(error.value)
            assert KEY not in str(error.value)


def test_a_denied_object_does_not_end_a_run(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::odd/in/100%.jpg"}
    use(server.create_key(allow, deny), monkeypatch)
    store = Storage.of("s3://odd")
    with server.checking_keys():
        assert store.read("s3://odd/in/a.jpg") == b"in/a.jpg"
        with pytest.raises(InputError) as refused:
            store.read("s3://odd/in/100%.jpg")
    assert refused.value.code == "permission_denied"


def test_reading_needs_no_permission_to_list(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        server.create_key({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}),
        monkeypatch,
    )
    store = Storage.of("s3://odd")
    with server.checking_keys():
        assert store.read("s3://odd/in/a.jpg") == b"in/a.jpg"
        with pytest.raises(InputError):
            store.read("s3://odd/in/nothing.jpg")
        with pytest.raises(StorageError, match="access is denied"):
            list(find_inputs(["s3://odd/in/"], "out"))


def test_an_unreachable_google_store_may_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    # A client that does not look for credentials first.
    client = pyarrow.fs.GcsFileSystem(
        anonymous=True,
        scheme="http",
        endpoint_override=f"127.0.0.1:{free_port()}",
        retry_time_limit=timedelta(seconds=1),
    )
    monkeypatch.setattr(storages, "_open", lambda storage: client)
    store = Storage.of("gs://bucket/")
    for ask in (
        lambda: store.read("gs://bucket/in/a.jpg"),
        lambda: store.write("gs://bucket/out", "part", b"rows"),
    ):
        with pytest.raises(StorageError, match="the store does not respond") as error:
            ask()
        assert error.value.code == UNREACHABLE


def test_an_unreachable_store_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # The default retries for longer.
    monkeypatch.setattr(storages, "MAX_ATTEMPTS", 1)
    store = Storage("s3", f"http://127.0.0.1:{free_port()}", "us-east-1")
    for act in (
        lambda: store.read("s3://odd/in/a.jpg"),
        lambda: store.require_bucket("s3://odd/"),
        lambda: store.write("s3://odd/out/", "part", b"x"),
    ):
        with pytest.raises(FfdError, match="the store does not respond") as error:
            act()
        assert not isinstance(error.value, InputError)
        assert "\n" not in str(error.value)


# --- parts as other programs read them ----------------------------------------------------------


@settings(max_examples=examples(30))
@given(st.lists(names, min_size=1, max_size=5, unique_by=identify))
def test_a_row_has_the_id_of_its_input(sources: list[str]) -> None:
    lines = [to_line(Result(source, label="unsure", score=0.5)) for source in sources]
    table = pa.parquet.read_table(pa.BufferReader(to_parquet(lines)))
    assert list(map(identify, table["source"].to_pylist())) == list(map(identify, sources))
    assert part_name(table["source"].to_pylist()) == part_name(sources)


def test_a_png_that_declares_a_huge_size_is_a_row(colour_model: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0" * 4)
    items = [Item(str(bomb)), Item(str(tmp_path / "nothing"))]
    (told,) = in_stages(items, colour_model, tmp_path / "out").to_pylist()
    rows = pyarrow.parquet.read_table(tmp_path / "out" / told["part"]).to_pylist()
    assert [row["error"]["code"] for row in rows] == ["too_large", "not_found"]
