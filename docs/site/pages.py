"""A hook of mkdocs: the documents that lie outside of docs/ are pages too, and links lead to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# From the root of the project, and as a page.
OUTSIDE = {
    "README.md": "overview.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "measurements.md",
    "fixtures/README.md": "fixtures.md",
}
_SOURCES = {page: source for source, page in OUTSIDE.items()}
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the project become links between pages; others stay, for mkdocs to check."""
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if target in OUTSIDE:
            return f"]({OUTSIDE[target]}"
        return f"]({target.removeprefix('docs/')}" if target.startswith("docs/") else link[0]

    return _LINK.sub(moved, markdown)
