"""Mistakes on the command line: each is told in one line that says what is wrong, and nothing is written."""

import shlex

import pytest
import torch
from command_line import psa
from PIL import Image
from safetensors.torch import save_file

from psa_triton.tools.understanding import read_media

PSA = "--attention-preset tiny-wan/psa_balanced"  # five steps of warm-up
SMALL = "--model MODEL --width 64 --height 64 --guidance-scale 1"
COMMANDS = {
    "generate": f"generate --output_dir OUT {SMALL} --num_frames 5 --steps 6 --min_tokens 0",
    "compare": f"compare --output_dir OUT {SMALL} --num_frames 5",
    "inspect": f"inspect --output_dir OUT {SMALL} --num_frames 17 --num-inference-steps 7 --prompt x {PSA}",
    "inspect nothing": "inspect --output_dir OUT",
    "inspect a file": "inspect --output_dir OUT --qkv QKV",
    "tune": "tune --output OUT.yaml --model MODEL --attention-preset tiny-wan/psa_budget",
    "tune files": "tune --output OUT.yaml --attention-preset tiny-wan/psa_budget",
    "understand": "understand --model QWEN --prompt 'What moves?' --max-tokens 8 --input PICTURE",
    "bench": "bench --output-dir OUT",
}
MISTAKES = [
    ("generate", "", "expected a prompt"),
    ("generate", "--prompt ' '", "expected a prompt"),
    ("generate", "--prompt x --prompt_file y", "got both"),
    ("generate", "--prompt_file nothing.txt", "there is no file nothing.txt"),
    ("generate", "--prompt x --model tiny-wam", "did you mean 'tiny-wan'"),
    ("generate", f"--prompt x --dense {PSA}", "got dense attention"),
    ("generate", "--prompt x --dense --max-error 0.1", "max_error: only for sparse attention: give --use-psa"),
    ("generate", "--prompt x --max-error 0", "max_error: expected a finite number above 0, got 0.0"),
    ("generate", "--prompt x --attention-preset tiny-wan/psa", "unknown preset 'psa'"),
    ("generate", "--prompt x --attention-preset ''", "unknown preset ''"),
    ("generate", "--prompt x --dense --device gpu", "device: 'gpu'"),
    ("generate", "--prompt x --dense --steps 0", "num_inference_steps"),
    ("generate", "--prompt x --dense_layers 3-", "dense_layers: expected indexes such"),
    ("generate", f"--prompt x {PSA} --dense_layers 0-2", "dense_layers: expected indexes from 0 to 1, got [2]"),
    ("generate", f"--prompt x {PSA} --dense_last_steps -1", "dense_last_steps: expected 0 or more"),
    ("generate", "--prompt x --model cogvideo_5b --width 100", "width: expected a multiple of 16, got 100; 96 fits"),
    ("generate", "--prompt x --model cogvideo_5b --lora_path ./none.safetensors", "there is no file or folder"),
    ("generate", "--prompt x --model cogvideo_5b --model_path ./none", "there is no pipeline folder"),
    ("compare", "", "expected a prompt"),
    ("compare", "--prompt x --attention-preset tiny-wan/baseline", "which is dense"),
    ("compare", f"--prompt x {PSA} {PSA}", "twice"),
    ("compare", f"--prompt x {PSA} --max-error nan", "max_error: expected a finite number above 0, got nan"),
    ("compare", f"--prompt x {PSA} --max-error inf", "max_error: expected a finite number above 0, got inf"),
    ("compare", f"--prompt x {PSA} --dense_layers 2", "dense_layers: expected indexes from 0 to 1, got [2]"),
    ("compare", "--prompt x --seed 1 --seed 1", "seed: expected each once"),
    ("compare", "--prompt x --seed 1 --seed 2 --num-seeds 2", "at most one --seed"),
    ("inspect nothing", "", "expected --prompt TEXT or --qkv FILE, got neither"),
    ("inspect", "--preset tiny-wan/baseline", "which is dense"),
    ("inspect", "--steps 2", "steps: expected some from 5 to 6"),
    ("inspect", "--steps 7", "steps: expected indexes from 0 to 6, got 7"),
    ("inspect", "--preset tiny-wan/psa_refresh --layers 0 --steps 1", "such as 0, 2, 4, 6, got 1"),
    ("inspect", "--layers 1,2", "layers: expected indexes from 0 to 1"),
    ("inspect", "--heads 2-3", "heads: expected indexes from 0 to 1"),
    ("inspect", "--heads a", "heads: expected indexes such as"),
    ("inspect", "--grid 5,8,8", "grid: only for saved tensors"),
    ("inspect", "--num-inference-steps 5", "more than the 5 warm-up"),
    ("inspect", "--model qwen2.5-vl-7b", "give --qkv --causal"),
    ("inspect a file", "", "expected SECTION/PRESET, as the file does not tell"),
    ("inspect a file", "--preset psa_balanced", "expected SECTION/PRESET"),
    ("inspect a file", "--preset tiny-wan/psa_balance", "psa_balanced"),
    ("inspect a file", "--preset tiny-wan/baseline", "which is dense"),
    ("inspect a file", f"{PSA} --grid 3,4,7", "the tokens of q, got 3 * 4 * 7"),
    ("inspect a file", f"{PSA} --heads 2", "heads: expected indexes from 0 to 1"),
    ("inspect a file", f"{PSA} --causal --grid 3,4,8", "use_rearrange: false"),
    ("inspect a file", f"{PSA} --dtype bfloat16", "dtype: only for a generation"),
    ("inspect a file", f"{PSA} --layers 1 --model x", "layers, model: only for a generation"),
    ("inspect a file", f"{PSA} --prompt x", "prompt: only for a generation"),
    ("tune", "", "expected a prompt"),
    ("tune", "--prompt x --budget 0.2 --target-error 0.1", "got budget and target_error"),
    ("tune", "--prompt x --target-speedup 12", "target_speedup: expected 7.35 or less"),
    ("tune", "--prompt x --preset-name a/b", "preset_name: expected a name without /, and other than dense, got 'a/b'"),
    ("tune", "--prompt x --preset-name ''", "preset_name: expected a name without /"),
    ("tune", "--prompt x --steps 3", "more than the 5 warm-up steps"),
    ("tune", f"--prompt x {PSA}", "expected one with mask_mode: budget"),
    ("tune files", "--qkv missing.safetensors", "there is no file missing.safetensors"),
    ("tune files", "--qkv EMPTY", "expected safetensors files in"),
    ("tune files", "--qkv x.safetensors --prompt x", "prompt: only for a generation"),
    (
        "tune files",
        "--qkv x.safetensors --seed 3 --parts 2 --model x --lora-path y",
        "parts, model, lora_path, seed: only",
    ),
    ("understand", "--input nothing.png", "input: there is no file nothing.png"),
    ("understand", f"--prompt '{'x ' * 999}'", "do not fit into the model's context"),
    ("understand", "--preprocess-frames 8", "preprocess_frames: only for videos: give --type video"),
    ("understand", "--max-pixels 9", "max_pixels: expected at least"),
    ("understand", "--attention-preset psa", "unknown preset 'psa'"),
    ("understand", "--dense --config x", "got dense attention"),
    ("understand", "--config x", "x: cannot be read"),
    ("understand", "--device gpu", "device: 'gpu'"),
    ("bench", "--shape wan21-72p", "wan21-720p"),
    ("bench", "--shape tiny-wan-1k --heads 9", "expected 1 to 3"),
    ("bench", "--attention-preset baseline", "expected a sparse one"),
    ("bench", "--attention-preset psa_balance", "psa_balanced"),
    ("bench", "--shape tiny-wan --tune-kernels --device cpu", "tune_kernels: expected a GPU, whose kernels are to be"),
]


@pytest.fixture(scope="module")
def places(pipeline_folder, qwen_folder, clips, tmp_path_factory):
    """What the words in capitals stand for."""
    home = tmp_path_factory.mktemp("given")
    (home / "empty").mkdir()
    # A batch of two over 96 tokens, without values.
    save_file({name: torch.randn(2, 2, 96, 16) for name in "qk"}, home / "made.safetensors")
    frame = read_media(clips / "bikes.mp4", "video", num_frames=1).frames[0]
    Image.fromarray(frame).save(home / "picture.png")
    files = {"QKV": home / "made.safetensors", "PICTURE": home / "picture.png", "EMPTY": home / "empty"}
    return {"MODEL": pipeline_folder, "QWEN": qwen_folder, **files}


@pytest.mark.parametrize(("command", "options", "message"), MISTAKES, ids=lambda words: words[:60])
def test_a_mistake_is_one_line_and_writes_nothing(command, options, message, places, tmp_path):
    known = {**places, "OUT": tmp_path / "out", "OUT.yaml": tmp_path / "my.yaml"}
    result = psa(*(known.get(word, word) for word in shlex.split(f"{COMMANDS[command]} {options}")))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
