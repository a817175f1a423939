"""ffd-run --ray: a cluster of two machines, an S3 server, and what is lost of either."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet
import pytest

from ..cluster import S3Server, TwoMachines
from ..conftest import picture
from .test_run import run, start

# Real time passes in it.
pytestmark = pytest.mark.alone

WATCHDOG = 300


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def machines(store: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoMachines]:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    machines = TwoMachines()
    yield machines
    machines.close()


def pictures(folder: Path, count: int, broken: int) -> None:
    """A folder of small pictures, no two alike, some of them in folders below, some cut off."""
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(("red", "blue")[number % 2], 64 + number % 50, 64, seed=number)
        ok, data = cv2.imencode(".jpg", image)
        assert ok
        cut = 300 if number % (count // broken) == 5 else None
        path.write_bytes(data.tobytes()[:cut])


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Rows of all parts, by source."""
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    return sorted(rows, key=lambda row: str(row["source"]))


def test_two_machines_and_one_that_dies_give_what_one_machine_gives(
    tmp_path: Path, store: S3Server, machines: TwoMachines
) -> None:
    here = tmp_path / "pictures"
    pictures(here, 2000, broken=20)
    paths = sorted(path for path in here.rglob("*") if path.is_file())
    store.create("night", ((f"in/{path.relative_to(here)}", path.read_bytes()) for path in paths))
    expected = tmp_path / "rows.parquet"
    assert run(here, "--output", expected)[0] == 3

    process = start(
        "s3://night/in/", "--ray", machines.address, "--output", "s3://night/out/", "--part", "200"
    )
    parts: list[str] = []
    while len(parts) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
        parts = [name for name in store.names("night", "out/") if name.startswith("part-")]
    machines.kill_one()
    _, said = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3, said.decode()
    assert b"2 machines" in said

    store.fetch("night", "out/", tmp_path / "out")
    wanted = sorted(pyarrow.parquet.read_table(expected).to_pylist(), key=lambda row: row["source"])
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 2000
    for row, want in zip(rows, wanted, strict=True):
        want["source"] = want["source"].replace(str(here), "s3://night/in")
        assert row.pop("score") == pytest.approx(want.pop("score"), abs=2e-6)
        assert row == want
    assert sum(row["error"] is not None for row in rows) == 20
    done = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert (done["inputs"], done["errors"]) == (2000, 20)
