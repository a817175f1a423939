"""Hook of mkdocs: add the files outside docs/ that its pages link to.

Pages link to `../benchmarks/folders.csv`, which works in the repository. The site has a copy of
each such file in `files/`. A link to a missing file fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog and all linked files."""
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    pages = [page.content_string for page in files.documentation_pages()]
    for path in sorted({path for text in pages for path in LINK.findall(text)}):
        if (ROOT / path).is_file():
            copy = File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path))
            files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the copies; mkdocs reports those that have none."""
    if page.file.src_uri == "changelog.md":
        # In the repository, it is beside docs/.
        return markdown.replace("](docs/", "](")
    return LINK.sub(r"](files/\1)", markdown)
