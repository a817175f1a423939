"""A cluster run retries failures, and each input ends with exactly one row."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_cluster import cluster_run, store_errors
from ffd_cluster.cluster_run import ClusterRun, _prefetch
from ffd_cluster.output_parts import Parts, TakenError, part_name
from ffd_cluster.ray_errors import RetryableError
from ffd_cluster.storage import Storage
from ffd_cluster.store_errors import UNREACHABLE
from ffd_runtime.core.errors import BackendError, DeviceError, OutputError, StorageError
from ffd_runtime.core.results import Result
from ffd_runtime.inputs import Item
from ffd_runtime.outputs.jsonlines import to_line
from ffd_runtime.outputs.parquet_file import to_parquet
from ffd_runtime.outputs.provenance import RunProvenance

ORIGIN = RunProvenance("colour (fp32)", "12", {"size": 299}, "34")
# A part of an attempt that fails is written and reported, written and not reported, written after
# the next attempt has begun, or never written.
FATES = ("reported", "silent", "late", "lost")


class Flaky(Storage):
    """A folder that is unreachable at times."""

    answers: Iterator[bool] = repeat(True)

    def names(self, folder: str) -> list[str]:
        self._ask(folder)
        return super().names(folder)

    def read(self, address: str) -> bytes:
        self._ask(address)
        return super().read(address)

    def delete(self, folder: str, name: str) -> None:
        self._ask(folder)
        super().delete(folder, name)

    @classmethod
    def _ask(cls, address: str) -> None:
        if not next(cls.answers, True):
            raise StorageError(f"{address}: the store does not respond", UNREACHABLE)


@dataclass
class Breaking(ClusterRun):
    """A cluster run whose first attempts fail.

    Attributes:
        script: for each attempt that fails, the inputs per part and the fate of each part.
        late: inputs of parts that are written when the next attempt begins.
    """

    script: list[tuple[int, list[str]]] = field(default_factory=list)
    late: list[list[str]] = field(default_factory=list)

    def _run(self, items: list[Item]) -> Iterator[tuple[str, int, Counter[str]]]:
        while self.late:
            write_part(Path(self.parts.folder), self.late.pop())
        if not self.script:
            yield from self._write(items, 4, repeat("reported"))
            return
        size, fates = self.script.pop(0)
        yield from self._write(items, size, iter(fates))
        raise RetryableError("a machine died")

    def _write(
        self, items: list[Item], size: int, fates: Iterator[str]
    ) -> Iterator[tuple[str, int, Counter[str]]]:
        for start in range(0, len(items), size):
            sources = [item.source for item in items[start : start + size]]
            fate = next(fates, "lost")
            if fate == "late":
                self.late.append(sources)
            elif fate != "lost":
                name = write_part(Path(self.parts.folder), sources)
                if fate == "reported":
                    yield name, len(sources), Counter(generated=len(sources))


def write_part(folder: Path, sources: list[str]) -> str:
    lines = [to_line(Result(source, label="generated", score=0.9)) for source in sources]
    name = part_name(sources)
    (folder / name).write_bytes(to_parquet(lines))
    return name


@pytest.fixture(autouse=True, scope="module")
def _ray_or_skip() -> None:
    # Not at import: it takes a second, in every process that collects tests.
    pytest.importorskip("ray")
    pytest.importorskip("ray.data")


def start_run(folder: Path, script: Any = (), resume: bool = False) -> Breaking:
    import ray

    parts = Parts(str(folder), Flaky("file"))
    seen = parts.begin(ORIGIN, resume)
    none: Any = None
    return Breaking(ray, none, parts, seen, none, none, script=list(script))


@pytest.fixture(autouse=True, scope="module")
def no_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (cluster_run, store_errors):
            patch.setattr(module, "RETRY_PAUSES_S", (0.0,) * 5)
        yield
    Flaky.answers = repeat(True)


attempts = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.sampled_from(FATES), max_size=8)), max_size=4
)


@settings(deadline=None)
@given(
    count=st.integers(0, 20),
    script=attempts,
    answers=st.lists(st.sampled_from([True, True, False]), max_size=30),
)
def test_each_input_has_one_row_after_any_failure(
    count: int, script: list[tuple[int, list[str]]], answers: list[bool]
) -> None:
    Flaky.answers = repeat(True)
    names = [f"{number}.jpg" for number in range(count)]
    with tempfile.TemporaryDirectory() as scratch:
        run = start_run(Path(scratch), script)
        Flaky.answers = iter(answers)
        try:
            run.classify(Item(name) for name in names)
        except (BackendError, StorageError):
            # The store was unreachable for too long: use --resume.
            Flaky.answers = repeat(True)
            start_run(Path(scratch), resume=True).classify(Item(name) for name in names)
        Flaky.answers = repeat(True)
        rows = [
            source
            for part in Path(scratch).glob("part-*")
            for source in pyarrow.parquet.read_table(part)["source"].to_pylist()
        ]
        assert sorted(rows) == sorted(names)
        done = json.loads((Path(scratch) / "_SUCCESS").read_text())
        assert done["inputs"] == done["generated"] == count


def test_five_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = start_run(tmp_path, [(1, [])] * 4 + [(1, ["reported"])] + [(1, [])] * 5)
    with pytest.raises(BackendError, match=r"^a machine died, 5 times in a row$"):
        run.classify([Item("a"), Item("b")])
    # The part in between reset the count.
    assert not run.script


def test_a_missing_device_is_retried(tmp_path: Path) -> None:
    import ray

    def replan() -> Any:
        raise DeviceError("no machine of the cluster offers Ray a GPU")

    run = start_run(tmp_path)
    none: Any = None
    waiting = ClusterRun(ray, none, run.parts, run.seen, replan, none)
    with pytest.raises(BackendError, match="GPU, 5 times in a row"):
        waiting.classify([Item("a")])


def test_a_run_stops_at_the_next_part_if_another_takes_its_output(tmp_path: Path) -> None:
    run = start_run(tmp_path)

    def items() -> Iterator[Item]:
        yield Item("a")
        # The output is still empty, so the other run may begin.
        Parts(str(tmp_path), Storage("file")).begin(ORIGIN, resume=True)

    with pytest.raises(TakenError, match="another run"):
        run.classify(items())


def test_a_deleted_part_is_an_error(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    run.seen.add(["of a part that is not there"])
    with pytest.raises(OutputError, match="instead of 2: it was changed"):
        run.classify([Item("a")])


def test_the_next_wave_is_listed_while_one_is_classified() -> None:
    found = []

    def values() -> Iterator[int]:
        for number in range(5):
            found.append(number)
            yield number

    for value in _prefetch(values()):
        assert len(found) <= value + 2
    assert found == [*range(5)]
    # A command that finds such a thread exits without the usual clean-up.
    assert not [thread for thread in threading.enumerate() if thread.name == "ffd-list"]
    with pytest.raises(ZeroDivisionError):
        list(_prefetch(1 // number for number in (1, 0)))
