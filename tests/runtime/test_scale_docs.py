"""The commands, options, links and fields in docs/scale.md and docs/kuberay.yaml exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from ffd_export.cli.export import main as ffd_export
from ffd_runtime.cli.bench import main as ffd_bench
from ffd_runtime.cli.run import main as ffd_run
from ffd_train.cli.train import main as ffd_train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
MANIFEST = (ROOT / "docs" / "kuberay.yaml").read_text()
TRAIN = "ffd_train.cli.train"
COMMANDS: dict[str, click.Command] = {
    "ffd-bench": ffd_bench,
    "ffd-export": ffd_export,
    "ffd-run": ffd_run,
    TRAIN: ffd_train,
}


def require_usage(line: str) -> str | None:
    """Parse a command of ffd without running it, and return its name."""
    words = shlex.split(re.split(r"\s[<|]", line)[-1 if " | " in line else 0], comments=True)
    name = words[0] if words else ""
    if name == "torchrun":
        words = words[words.index("-m") + 1 :]
        name = words[0]
    if name not in COMMANDS:
        return None
    COMMANDS[name].make_context(name, words[1:])
    return name


def test_the_page_names_options_that_exist() -> None:
    text = PAGE.replace("\\\n", " ")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    inline = re.findall(r"`(ffd-[a-z]+ [^`]+)`", text.replace("\n", " "))
    used = [require_usage(line) for line in [*lines, *inline]]
    assert set(filter(None, used)) == set(COMMANDS)
    assert used.count("ffd-run") > 6


def test_links_lead_to_files_and_headings() -> None:
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.+)$", PAGE)}
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "docs" / path).is_file(), target
        assert path or anchor in titles, target


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\.\[([a-z,]+)\]|EXTRAS=([a-z,]+)", PAGE)
    extras = {extra for pair in named for extra in "".join(pair).split(",")}
    assert {"ray", "cuda"} <= extras <= set(project["optional-dependencies"])


def test_the_manifest_is_a_job_that_runs_here() -> None:
    yaml = pytest.importorskip("yaml")
    account, job = yaml.safe_load_all(MANIFEST)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    entrypoint = job["spec"]["entrypoint"].partition("||")[0]
    context = ffd_run.make_context("ffd-run", shlex.split(entrypoint)[1:])
    assert context.params["resume"]
    assert context.params["ray"]
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (container,) = pod["containers"]
        # Ray counts what a container is limited to.
        assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pinned = re.search(r"(?m)^ray==(.+)$", (ROOT / "constraints.txt").read_text())
    assert pinned
    assert cluster["rayVersion"] == pinned[1]
