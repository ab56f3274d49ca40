"""The small model and the clips of `tests/tools/understanding`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "understanding"))

from small_qwen_fixtures import clips, qwen_folder, short_prompts_sparse

__all__ = ["clips", "qwen_folder", "short_prompts_sparse"]


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """Shells start what runs in the background with them ignored, and commands leave it at that."""
    ignored = [s for s in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_IGN]
    for stop in ignored:
        signal.signal(stop, signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL)
    yield
    for stop in ignored:
        signal.signal(stop, signal.SIG_IGN)
