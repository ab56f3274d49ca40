"""Messages for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, given: str, known: Iterable[str]) -> str:
    """What to tell somebody who gave a name that does not exist.

    Args:
        kind: what the name stands for, such as "model".
        given: the name that came.
        known: the names that exist.

    Returns:
        `unknown KIND 'GIVEN'; did you mean 'NEAREST'? Known: ...`; the question only where a known name is near.
    """
    known = sorted(known)
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(given.casefold(), folded, n=1)
    question = f"; did you mean '{folded[near[0]]}'?" if near else "."
    return f"unknown {kind} '{given}'{question} Known: {', '.join(known) or 'none'}"
