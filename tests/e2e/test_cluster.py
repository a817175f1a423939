"""ffd-run --ray on a cluster of two machines with an S3 server, and failures of both."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet
import pytest

from ffd_cluster.cluster_run import make_tables
from ffd_cluster.output_parts import Parts
from ffd_cluster.plan import Plan
from ffd_cluster.ray_connection import connected
from ffd_cluster.ray_errors import RetryableError, translate_ray_errors
from ffd_cluster.ray_pipeline import Work, _pipeline
from ffd_cluster.ray_pipeline import run as run_stages
from ffd_cluster.stages import Model
from ffd_cluster.storage import storage_of
from ffd_cluster.tally import start_tally
from ffd_runtime.core.errors import BackendError, ModelError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.inputs import Item
from ffd_runtime.model.card import PreprocessSpec

from ..cluster import KEY, SECRET, S3Server, TwoMachines
from ..conftest import picture
from ..nightly import repeat
from .test_run import run_here, start

WATCHDOG = 300
IMAGES = repeat(300, 2000)
Ended = tuple[int, str, str]


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture(scope="module")
def machines(store: S3Server) -> Iterator[TwoMachines]:
    machines = TwoMachines()
    yield machines
    machines.close()


def pictures(folder: Path, count: int, broken: int) -> None:
    """Write small images, all different, to subfolders; some are truncated."""
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(("red", "blue")[number % 2], 64 + number % 50, 64, seed=number)
        ok, data = cv2.imencode(".jpg", image)
        assert ok
        cut = 300 if number % (count // broken) == 5 else None
        path.write_bytes(data.tobytes()[:cut])


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, store: S3Server) -> Path:
    """A folder of `IMAGES` images, 20 of them damaged, and the same in s3://night/in/."""
    here = tmp_path_factory.mktemp("night") / "pictures"
    pictures(here, IMAGES, broken=20)
    paths = sorted(path for path in here.rglob("*") if path.is_file())
    store.create("night", ((f"in/{path.relative_to(here)}", path.read_bytes()) for path in paths))
    return here


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts, sorted by source."""
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    return sorted(rows, key=lambda row: str(row["source"]))


def wait_for_parts(process: subprocess.Popen[bytes], store: S3Server, out: str, count: int) -> None:
    deadline = time.monotonic() + WATCHDOG
    while sum(name.startswith("part-") for name in store.names("night", out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def end_all(processes: Iterable[subprocess.Popen[bytes]]) -> list[Ended]:
    """Wait for several processes, and return their exit codes and output."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=WATCHDOG)
        ended.append((process.returncode, (out or b"").decode(), err.decode()))
    return ended


def assert_one_line(ended: Ended, *said: str) -> None:
    """Check that the last line is the error; the lines before it describe the run."""
    code, out, err = ended
    *before, last = err.splitlines()
    assert (code, out) == (1, ""), err
    assert last.startswith("ffd-run: error: ")
    assert all(text in last for text in said), last
    kinds = ("Ray 2.", "colour (", "retrying ")
    assert all(line.startswith(kinds) or "have rows in" in line for line in before), err


def test_a_killed_command_resumes(
    tmp_path: Path, store: S3Server, machines: TwoMachines, night: Path, colour_model: Path
) -> None:
    folders = [f"s3://night/in/{number}/" for number in range(3)]
    cluster = ("--ray", machines.address, "--actors", "1", "--model", colour_model)
    options = (*cluster, "--part", "10", "--output", "s3://night/killed/")
    process = start(*folders, *options)
    wait_for_parts(process, store, "killed/", 3)
    process.kill()
    process.communicate()
    assert "_SUCCESS" not in store.names("night", "killed/")
    before = set(store.names("night", "killed/"))

    assert_one_line(run_here(*folders, *options), "continue with --resume")
    # A resumed run may have more sources.
    client = store.client()
    ok, data = cv2.imencode(".png", picture("blue"))
    assert ok
    for name in ("new 1.png", "new%2F2.png"):
        client.put_object(Bucket="night", Key=f"later/{name}", Body=data.tobytes())
    code, _, said = run_here(*folders, "s3://night/later/", *options, "--resume")
    assert code == 3, said
    assert "resuming after" in said
    # The complete parts were kept.
    assert len(before & set(store.names("night", "killed/"))) > 3
    store.fetch("night", "killed/", tmp_path / "rows")
    sources = [row["source"] for row in rows_in(tmp_path / "rows")]
    paths = [path for number in range(3) for path in (night / str(number)).iterdir()]
    expected = [f"s3://night/in/{path.relative_to(night)}" for path in paths]
    expected += ["s3://night/later/new 1.png", "s3://night/later/new%2F2.png"]
    assert sources == sorted(expected)
    assert f"{len(expected)} inputs" in said
    done = json.loads((tmp_path / "rows" / "_SUCCESS").read_text())
    assert done["inputs"] == done["rows"] == len(expected)


def commands() -> str:
    """Return the arguments of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found).decode(errors="replace")


def test_keys_are_not_in_any_output(
    tmp_path: Path, store: S3Server, machines: TwoMachines, night: Path, colour_model: Path
) -> None:
    paths = sorted(night.rglob("*.jpg"))[:60]
    listed = [f"s3://night/in/{path.relative_to(night)}" for path in paths]
    names = tmp_path / "names"
    secret = f"s3://{KEY}:{SECRET}@night/in/a.jpg"
    names.write_text("\n".join([secret, *listed, "s3://night/in/nothing.jpg", str(paths[0])]))
    options = ("--ray", machines.address, "--actors", "1", "--model", colour_model, "--part", "20")

    def classify(*more: object) -> Ended:
        with names.open("rb") as stream:
            process = start("-", *options, *more, stdin=stream)
        seen.append(commands())
        while process.poll() is None:
            time.sleep(0.5)
            seen.append(commands())
        return end_all([process])[0]

    seen: list[str] = []
    code, out, said = classify("--output", "s3://night/quiet/", "-v")
    assert (code, out) == (3, ""), said
    with store.checking_keys():
        # The command sends no request to the store; the machines are refused.
        refused = classify("--output", tmp_path / "refused")
    assert_one_line(refused, "s3://night/", "does not know the access key")

    store.fetch("night", "quiet/", tmp_path / "quiet")
    rows = rows_in(tmp_path / "quiet")
    shown = names.read_text().replace(secret, "s3://*** (1 on standard input)")
    assert [row["source"] for row in rows] == sorted(shown.splitlines())
    assert "refused" in [row["error"]["code"] for row in rows if row["error"]]
    texts = [out, said, *refused[1:], json.dumps(rows), *seen]
    files = [path for path in machines.session.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    files += [path for path in tmp_path.rglob("*") if path.is_file() and path != names]
    texts += [path.read_bytes().decode(errors="replace") for path in files]
    assert not [text for text in texts if KEY in text or SECRET in text]


def test_a_local_run_and_its_resume(
    tmp_path: Path, machines: TwoMachines, portraits: Path, colour_model: Path
) -> None:
    (portraits / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    cluster = ("--ray", machines.address, "--actors", "1", "--model", colour_model)
    command = (portraits, *cluster, "--output", tmp_path / "out")
    for more, said in (((), "4 inputs: 2 generated"), (("--resume",), "resuming after 4 inputs")):
        code, out, err = run_here(*command, *more)
        assert (code, out) == (3, ""), err
        assert said in err
    rows = rows_in(tmp_path / "out")
    assert [row["label"] for row in rows] == ["generated", "groundtruth", "generated", None]


def test_invalid_inputs_and_outputs_are_one_line_errors(
    tmp_path: Path, store: S3Server, machines: TwoMachines, night: Path, colour_model: Path
) -> None:
    options = ("--ray", machines.address, "--model", colour_model, "--output")
    ended = run_here("s3://nowhere/in/", *options, tmp_path / "a")
    assert_one_line(ended, "s3://nowhere/in/", "no such bucket")
    (tmp_path / "file").touch()
    ended = run_here(night, *options, tmp_path / "file")
    assert_one_line(ended, f"cannot write {tmp_path / 'file'}")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 40 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_one_line_error(
    full: Path, machines: TwoMachines, night: Path, colour_model: Path
) -> None:
    cluster = ("--ray", machines.address, "--actors", "1", "--model", colour_model)
    ended = run_here(night, *cluster, "--part", "15", "--output", full)
    assert_one_line(ended, f"cannot write {full}/", "No space left")
    # The parts that were written are complete.
    assert 0 < len(rows_in(full)) < IMAGES


def work_on(model: Model, folder: Path) -> Work:
    parts = Parts(str(folder), storage_of(""))
    return Work(model, PreprocessSpec(), parts, max_pixels=10**6, batch=4, part=10)


@pytest.fixture(scope="class")
def ray(machines: TwoMachines) -> Iterator[Any]:
    """One connection for all tests of a class, because Ray starts processes for each connection."""
    with connected(machines.address, verbose=False) as ray:
        yield ray


@pytest.mark.filterwarnings(r"ignore::UserWarning:ray\b")
class TestOneConnection:
    def test_ray_does_not_fuse_the_stages_or_join_the_tables(
        self, ray: Any, portraits: Path, colour_model: Path, tmp_path: Path
    ) -> None:
        # Parts of one input, because larger parts join tables.
        work = replace(work_on(Model.read(colour_model, "auto", "cpu"), tmp_path), part=1)
        plan = Plan.of(ray.nodes(), "cpu")
        tables = make_tables([Item(str(path)) for path in portraits.iterdir()], plan)
        data = _pipeline(ray, work, plan, tables, {"": storage_of("")}, None)
        assert data.materialize().num_blocks() == len(tables) > 1
        with redirect_stdout(io.StringIO()) as text:
            data.explain()
        optimised = text.getvalue().partition("Physical Plan (Optimized)")[2]
        names = ("write_block", "InferActor", "prepare_block")
        stages = [f"MapBatches({name})" for name in names]
        assert re.findall(r"MapOperator\[(.+)\]", optimised) == stages

    def test_the_tally_runs_on_the_machine_of_the_command(self, ray: Any) -> None:
        def where(_: Any) -> str:
            import ray

            place: str = ray.get_runtime_context().get_node_id()
            return place

        here = ray.get_runtime_context().get_node_id()
        places = ray.get([start_tally(ray).__ray_call__.remote(where) for _ in range(4)])
        assert set(places) == {here}

    def test_a_machine_with_another_version_ends_the_run(
        self, ray: Any, portraits: Path, colour_model: Path, tmp_path: Path
    ) -> None:
        model = replace(Model.read(colour_model, "auto", "cpu"), version="0.0.1")
        plan = Plan.of(ray.nodes(), "cpu", actors=1)
        tables = make_tables([Item(str(portraits))], plan)
        with pytest.raises(ModelError, match=r"install the same version on all machines$"):
            list(
                run_stages(ray, work_on(model, tmp_path), plan, tables, {"": storage_of("")}, None)
            )

    @pytest.mark.parametrize(
        ("code", "error", "said"),
        [
            ("1 / 0", BackendError, r"^Ray failed: ZeroDivisionError: division by zero$"),
            ("import nothing_such", BackendError, r"the extra ray there, as here$"),
        ],
    )
    def test_an_error_of_a_task_is_reported_with_its_cause(
        self, ray: Any, code: str, error: type[Exception], said: str
    ) -> None:
        def fail(_: Any, code: str) -> None:
            exec(code)

        data = ray.data.range(1).map_batches(fail, fn_args=(code,), batch_size=None)
        with pytest.raises(error, match=said), translate_ray_errors(ray):
            data.materialize()

    def test_a_lost_process_is_retryable(self, ray: Any) -> None:
        def die() -> None:
            os._exit(1)

        with (
            pytest.raises(RetryableError, match=r"^WorkerCrashedError: "),
            translate_ray_errors(ray),
        ):
            ray.get(ray.remote(max_retries=0)(die).remote())


# The last test of `machines`, because it leaves one.
def test_two_machines_of_which_one_fails_return_the_rows_of_one_machine(
    tmp_path: Path, store: S3Server, machines: TwoMachines, night: Path, colour_model: Path
) -> None:
    expected = tmp_path / "rows.parquet"
    assert run_here(night, "--output", expected, "--model", colour_model)[0] == 3
    cluster = ("--ray", machines.address, "--model", colour_model)
    process = start("s3://night/in/", *cluster, "--output", "s3://night/out/", "--part", "30")
    wait_for_parts(process, store, "out/", 3)
    machines.kill_one()
    _, said = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3, said.decode()
    assert b"2 machines" in said

    store.fetch("night", "out/", tmp_path / "out")
    wanted = sorted(pyarrow.parquet.read_table(expected).to_pylist(), key=lambda row: row["source"])
    rows = rows_in(tmp_path / "out")
    assert len(rows) == IMAGES
    for row, want in zip(rows, wanted, strict=True):
        want["source"] = want["source"].replace(str(night), "s3://night/in")
        assert row.pop("score") == pytest.approx(want.pop("score"), abs=2e-6)
        assert row == want
    assert sum(row["error"] is not None for row in rows) == 20
    done = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert (done["inputs"], done["errors"]) == (IMAGES, 20)


def processes_with(setting: str) -> list[str]:
    """Return the processes that have a variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("number", "code", "said"),
    # Each starts a cluster of its own.
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")][: repeat(1, 2)],
)
def test_a_signal_ends_all_processes(
    tmp_path: Path, night: Path, colour_model: Path, number: int, code: int, said: str
) -> None:
    # Ray creates its sockets here, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ffd", dir="/tmp", ignore_cleanup_errors=True) as ray:
        options = ("--actors", "1", "--model", colour_model, "--part", "20", "--output", tmp_path)
        process = start(night, "--ray", *options, env=os.environ | {"RAY_TMPDIR": ray})
        try:
            while not list(tmp_path.glob("part-*")):
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            process.send_signal(number)
            (ended,) = end_all([process])
        finally:
            process.kill()
        *before, last = ended[2].splitlines()
        assert (ended[0], last) == (code, f"ffd-run: {said}"), ended[2]
        kinds = ("Ray 2.", "colour (")
        assert all(line.startswith(kinds) or "have rows in" in line for line in before), before
        assert not (tmp_path / "_SUCCESS").exists()
        deadline = time.monotonic() + 20
        while left := processes_with(f"RAY_TMPDIR={ray}"):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


REFUSED = "cannot be combined with --ray"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("s3://b1/in/", "--output", "rows.csv"), "s3:// and gs:// addresses need --ray"),
        (("in", "--output", "gs://b1/rows/"), "s3:// and gs:// addresses need --ray"),
        (("in", "--ray"), "--ray needs an --output"),
        (("in", "--ray", "--output", "rows.parquet"), "a folder of Parquet files"),
        (
            ("in", "--ray", "--output", "out", "--workers", "2"),
            f"--workers {REFUSED}",
        ),
        (
            ("in", "--ray", "--output", "out", "--annotate", "d"),
            f"--annotate {REFUSED}",
        ),
        (
            ("in", "--ray", "--output", "out", "--report", "a.html"),
            f"--report {REFUSED}",
        ),
        (("in", "--ray", "--output", "out", "--json"), REFUSED),
        (("in", "--ray", "--output", "out", "--show"), f"--show {REFUSED}"),
        (("in", "--actors", "2"), "--actors needs --ray"),
        (("in", "--part", "2"), "--part needs --ray"),
        (("--ray", "s3://b1/in/", "--output", "out"), "put SOURCEs before --ray"),
        (("--ray", str(Path(__file__).parent), "--output", "out"), "put SOURCEs before --ray"),
        (("in", "--ray", "ray://h:10001", "--output", "out"), "Ray's client"),
        (("in", "--ray", "--output", "out", "--device", "cuda:1"), "cuda:1"),
        (("--ray", "--output", "out"), "SOURCE"),
        (("in", "--ray", "--output", "out", "--min-face", "9"), "--min-face needs --faces"),
        ((f"s3://{KEY}:{SECRET}@b1/in/",), "need --ray"),
        pytest.param(("--ray", f"s3://{KEY}:{SECRET}@b1/", "--output", "out"), "before --ray"),
        pytest.param(("in", "--ray", "--output", f"s3://{KEY}:{SECRET}@b1/x.csv"), "Parquet files"),
    ],
)
def test_invalid_usage_is_a_one_line_error(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run_here(*arguments)
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("ffd-run: error: ")
    assert said in line
    assert KEY not in line
    assert SECRET not in line


NO_RAY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from ffd_runtime.cli.run import main
main(sys.argv[1:], prog_name="ffd-run")
"""


def test_an_address_of_rays_client_in_the_environment_is_an_error(
    portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://h:10001")
    ended = run_here(portraits, "--ray", "--output", tmp_path)
    assert_one_line(ended, "ray://h:10001", "Ray's client")


def test_a_cluster_of_this_machine_that_has_ended_is_an_error(
    portraits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps the address of a cluster that was killed, and would retry for minutes."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ended = run_here(portraits, "--ray", "--output", tmp_path / "out")
    assert_one_line(ended, "127.0.0.1:9", "ray stop")


def test_without_ray_the_error_names_the_extra(portraits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_RAY, str(portraits), "--ray", "--output"]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], capture_output=True, text=True, timeout=WATCHDOG
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("ffd-run: error: ")
    assert install_hint("ray") in line
    assert not (tmp_path / "out").exists()


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, ffd_runtime.cli.run; print(*sys.modules, sep=chr(10))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()}
    assert not loaded & {"ray", "pyarrow", "cv2", "numpy"}
