"""Questions about images and videos -> answers: read a file, make the model's input, prefill, decode."""

from __future__ import annotations

from psa_triton.tools.understanding.answer import Answer, answer_prompt
from psa_triton.tools.understanding.checkpoint import Checkpoint, find_checkpoint
from psa_triton.tools.understanding.media import Media, MediaKind, check_media, read_media
from psa_triton.tools.understanding.patches import Patcher, Patches
from psa_triton.tools.understanding.prompt import Prompt, make_prompt

__all__ = [
    "Answer",
    "Checkpoint",
    "Media",
    "MediaKind",
    "Patcher",
    "Patches",
    "Prompt",
    "answer_prompt",
    "check_media",
    "find_checkpoint",
    "make_prompt",
    "read_media",
]
