"""The small model and the clips of `tests/understanding`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "understanding"))

from small_qwen_fixtures import clips, qwen_folder

__all__ = ["clips", "qwen_folder"]
