"""Small checkpoints, saved once a session; `small_checkpoints` becomes importable, as no test folder is on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a small checkpoint."""
    from small_checkpoints import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda name: save_checkpoint(name, folder)


@pytest.fixture(scope="session")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `hf download GYP666/BLADE ... --local-dir weights` leaves it."""
    from small_checkpoints import save_lora

    return save_lora(tmp_path_factory.mktemp("weights") / "cogvideox-5b-psa-lora")
