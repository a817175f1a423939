"""The examples of docs/api.md run; links and commands of all pages are valid."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import cv2
import pytest
from click.testing import CliRunner

from ffd_export.cli.export import main as ffd_export
from ffd_runtime import __version__
from ffd_runtime.cli.bench import main as ffd_bench
from ffd_runtime.cli.doctor import main as ffd_doctor
from ffd_runtime.cli.run import main as ffd_run
from ffd_train.cli.data import main as ffd_data
from ffd_train.cli.eval import main as ffd_eval
from ffd_train.cli.train import main as ffd_train

from ..conftest import picture

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, click.Command] = {
    "ffd-bench": ffd_bench,
    "ffd-data": ffd_data,
    "ffd-doctor": ffd_doctor,
    "ffd-eval": ffd_eval,
    "ffd-export": ffd_export,
    "ffd-run": ffd_run,
    "ffd-train": ffd_train,
}
SUBCOMMANDS = {f"ffd-data {name}": command for name, command in ffd_data.commands.items()}
# Pages that are made when the site is built.
GENERATED = {"changelog.md"}


def find_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs form them, and those set by hand."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


@pytest.mark.parametrize("name", sorted({*COMMANDS, *SUBCOMMANDS} - {"ffd-data"}))
def test_every_command_has_its_exit_codes_and_its_version(name: str) -> None:
    command = {**COMMANDS, **SUBCOMMANDS}[name]
    runner = CliRunner()
    said = runner.invoke(command, ["--help"], prog_name=name).output
    assert re.search(r"Exit codes:\n +0 \w+", said)
    assert __version__ in runner.invoke(command, ["--version"], prog_name=name).output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_options_that_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).splitlines():
        words = shlex.split(line.removeprefix("$ ").split(" | ")[0].split(" < ")[0], comments=True)
        command = COMMANDS.get(words[0]) if words else None
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[1])
        if command:
            options = {
                option for each in command.params for option in each.opts + each.secondary_opts
            }
            named = {word for word in words if word.startswith("--")}
            assert named <= options, line


def test_the_site_lists_every_page_once() -> None:
    listed = re.findall(r"^ +- .+: (.+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == GENERATED | {page.name for page in (ROOT / "docs").glob("*.md")}


def find_examples() -> list[str]:
    """Code blocks of docs/api.md, in order."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_the_examples_are_typed(tmp_path: Path) -> None:
    module = tmp_path / "examples.py"
    module.write_text("\n".join(find_examples()))
    # The cache of the repository's own mypy run, if there was one, saves most of the time.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", str(module)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = find_examples()
    assert len(blocks) > 8
    (tmp_path / "portraits").mkdir()
    for number, colour in enumerate(("red", "blue", "red")):
        cv2.imwrite(str(tmp_path / "portraits" / f"{number}.jpg"), picture(colour, 320, 300))
    (tmp_path / "portraits" / "broken.png").write_bytes(b"\x89PNG")
    cv2.imwrite(str(tmp_path / "portrait.jpg"), picture("blue", 400, 300))
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.CAP_FFMPEG, code, 25, (160, 120))
    for number in range(20):
        writer.write(picture("red", 120, 160, seed=number))
    writer.release()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len((tmp_path / "verdicts.csv").read_text().splitlines()) == 4
    assert [result.source for result in names["results"]] == [str(p) for p in names["paths"]]
    assert abs(names["by_path"].score - names["by_pillow"].score) < 0.05
    assert names["shown"].shape == (400, 300, 3)
    assert names["pipeline"].summary() == "clip.mp4: 20 of 20 frames"
    with pytest.raises(Exception, match="closed"):
        names["classifier"].predict(names["np"].stack(names["inputs"]))
