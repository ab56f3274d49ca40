"""`psa understand` and the script of `qwen2.5-vl-example`, on a small model and real files."""

import re

import pytest
import yaml
from command_line import psa
from programs import ROOT, load_script, python
from typer.testing import CliRunner

from psa_triton.presets import shipped_presets
from psa_triton.tools.understanding import read_media

SCRIPT = ROOT / "qwen2.5-vl-example" / "src" / "inference.py"
NUMBER = r"\d+\.\d+"


@pytest.fixture(scope="session")
def script():
    return load_script(SCRIPT).app


@pytest.fixture
def understand(qwen_folder):
    """Runs `psa understand` with a question to the small model."""

    def run(*options):
        return psa("understand", "--model", qwen_folder, "--prompt", "What moves?", "--max-tokens", 8, *options)

    return run


@pytest.fixture
def video(clips):
    """Options for 600 visual tokens of a real clip: five query blocks."""
    return ("--type", "video", "--input", str(clips / "carphone_pristine.mp4"), "--preprocess-frames", "40")


@pytest.fixture
def picture(clips, tmp_path):
    from PIL import Image

    Image.fromarray(read_media(clips / "bikes.mp4", "video", num_frames=1).frames[0]).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def presets(tmp_path):
    """A presets file of the user's own, with a preset that reads less than the shipped one."""
    sections = yaml.safe_load(shipped_presets().read_text(encoding="utf-8"))
    attentions = sections["Qwen2.5-VL"]["attention_configs"]
    attentions["sparse"] = attentions["psa_balanced"] | {
        "use_sim_mask": False,
        "mask_mode": "topk",
        "mask_ratios": {1: [0.0, 0.2], 4: [0.2, 0.5], 0: [0.5, 1.0]},
    }
    path = tmp_path / "presets.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return str(path)


def summary(result):
    """The lines under the answer."""
    assert result.exit_code == 0, result.output
    return result.output.rstrip("\n").split("\n")[-4:]


def test_a_question_about_a_video(understand, video, presets):
    result = understand(*video, "--config", presets, "--attention-preset", "sparse")
    seen, prompt, answer, attention = summary(result)
    assert seen == "video: 40 of 120 frames, 20x10x12 patches, 600 visual tokens"
    assert re.fullmatch(rf"prompt: 632 tokens, prefill {NUMBER} s", prompt)
    assert re.fullmatch(rf"answer: \d tokens, {NUMBER} tokens/s", answer)
    density = re.fullmatch(
        rf"attention: Qwen2.5-VL/sparse; sparse in 2 of 2 layers of the prefill, density there ({NUMBER})%, "
        rf"({NUMBER})% with estimation",
        attention,
    )
    without, with_estimation = map(float, density.groups())
    assert 50 < without < with_estimation < 100


def test_a_question_about_an_image(understand, picture):
    seen, prompt, _, attention = summary(understand("--input", picture))
    assert seen == "image: 1 image, 1x10x24 patches, 60 visual tokens"
    assert prompt.startswith("prompt: 92 tokens, ")
    seen, _, answer, _ = summary(understand("--input", picture, "--max_pixels", "7840", "--max_tokens", "1"))
    assert seen.endswith(" 8 visual tokens") and answer == "answer: 1 tokens"
    assert attention == "attention: Qwen2.5-VL/psa_balanced; all of the prefill was dense: fewer than 384 tokens"


def test_the_default_preset_is_sparse_and_changes_nothing_that_matters(understand, video):
    """Keys of random weights are unlike, so that the similarity cap keeps every block at level 1."""
    sparse, dense = understand(*video), understand(*video, "--dense")
    assert summary(sparse)[3].startswith("attention: Qwen2.5-VL/psa_balanced; sparse in 2 of 2 layers")
    assert summary(dense)[3] == "attention: dense"
    assert sparse.output.split("\n\nvideo: ")[0] == dense.output.split("\n\nvideo: ")[0]


def test_the_script_is_dense_unless_asked(script, qwen_folder, video, presets):
    few = ("--model", str(qwen_folder), "--prompt", "What moves?", "--max_tokens", "2", *video)
    names = {
        (): "dense",
        ("--use_psa",): "Qwen2.5-VL/psa_balanced; ",
        ("--attention_preset", "psa_balanced"): "Qwen2.5-VL/psa_balanced; ",
        ("--use-psa", "--config", presets, "--attention-preset", "sparse"): "Qwen2.5-VL/sparse; ",
    }
    for options, name in names.items():
        assert summary(CliRunner().invoke(script, [*few, *options]))[3].startswith(f"attention: {name}")


def test_the_script_runs_as_a_program_and_prints_nothing_but_its_lines(qwen_folder, video, tmp_path):
    options = ("--model", str(qwen_folder), "--prompt", "What moves?", "--use-psa", "--max-tokens", "8")
    done = python(SCRIPT, *options, *video, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answer, _, lines = done.stdout.partition("\n\nvideo: ")
    assert answer
    assert len(lines.splitlines()) == 4
