"""Hooks of the site: what pages take from outside `docs/`. Links to files become their names, pictures come along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PICTURE = re.compile(r"!\[([^\]]+)\]\(\.\./([^)]+)\)")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pictures that pages show from elsewhere in the checkout."""
    docs = Path(config.docs_dir)
    for _, path in {found for page in docs.glob("*.md") for found in _PICTURE.findall(page.read_text("utf-8"))}:
        files.append(File.generated(config, path, abs_src_path=str(docs.parent / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[the guide](../configs/README.md)` becomes "the guide (`configs/README.md`)"."""
    return _OUTSIDE.sub(_name_instead, _PICTURE.sub(r"![\1](\2)", markdown))


def _name_instead(link: re.Match[str]) -> str:
    text, path = link.groups()
    return text if path in text else f"{text} (`{path}`)"
