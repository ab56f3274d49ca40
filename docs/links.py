"""Hook of the site: links to files of the checkout, which the site lacks, become the names of the files."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"!?\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[the guide](../configs/README.md)` becomes "the guide (`configs/README.md`)"."""
    return _OUTSIDE.sub(_name_instead, markdown)


def _name_instead(link: re.Match[str]) -> str:
    text, path = link.groups()
    return text if path in text else f"{text} (`{path}`)"
