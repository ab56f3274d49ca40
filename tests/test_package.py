"""The wheel holds all that a person needs: it is built, installed elsewhere and used from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import psa_triton

CHECKOUT = Path(__file__).parents[1]
SHIPPED = ["configs/attention_config.yaml", "py.typed"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Runs Python with the installed wheel, in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    return run


def test_wheel_holds_the_presets_and_the_model(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    model = CHECKOUT / "src" / "psa_triton" / "tools" / "builtin" / "tiny-wan"
    weights = [str(file.relative_to(CHECKOUT / "src")) for file in model.rglob("*") if file.is_file()]
    assert any(file.endswith(".safetensors") for file in weights)
    assert {f"psa_triton/{file}" for file in SHIPPED} | set(weights) <= files


def test_wheel_holds_nothing_else(wheel):
    folders = {file.split("/")[0] for file in zipfile.ZipFile(wheel).namelist()}
    assert folders == {"psa_triton", f"psa_triton-{psa_triton.__version__}.dist-info"}


def test_presets_are_read_from_the_installed_package(python, installed):
    done = python("-c", "from psa_triton.presets import load_presets_file; print(load_presets_file().path)")
    assert Path(done.stdout.strip()) == installed / "psa_triton" / "configs" / "attention_config.yaml", done.stderr


def test_the_demo_runs_from_the_installed_package(python, tmp_path):
    # As `make demo`, with fewer steps: five are warm-up, the sixth is sparse.
    options = ["--model", "tiny-wan-1k", "--prompt", "a red square moving left", "--steps", "6", "--output_dir", "demo"]
    done = python("-m", "psa_triton.tools.cli.app", "compare", *options)
    assert done.returncode == 0, done.stderr
    assert "psa_balanced was" in done.stdout
    made = {file.name for file in (tmp_path / "demo").iterdir()}
    pictures = {"dense.mp4", "psa.mp4", "side_by_side.mp4", "frames.png", "report.html"}
    assert made == pictures | {"case.json", "comparison.json", "comparison.md"}
    assert all((tmp_path / "demo" / name).stat().st_size > 0 for name in made)
