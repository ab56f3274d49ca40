"""A small model and real clips; makes `small_qwen` importable, as no test folder is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_qwen_fixtures import clips, qwen_folder, short_prompts_sparse

__all__ = ["clips", "qwen_folder", "short_prompts_sparse"]
