"""Pipelines of any family by their folder: images, audio along with video, a picture to start from."""

import json
import shutil
from pathlib import Path

import av
import diffusers
import numpy as np
import pytest
import torch
from command_line import psa
from PIL import Image
from small_models import make_flux, make_ltx2
from small_pipelines import make_wan_image_pipeline, make_wan_modular_pipeline, make_wan_pipeline

from psa_triton.tools.generation import choose_attention, find_source, make_requests
from psa_triton.tools.generation.loading import load_pipeline
from psa_triton.tools.generation.request import InputImage
from psa_triton.tools.video import Audio, encode_video

PRESET = "CogVideo_5b/psa_4steps"  # no warm-up
HAS_LTX2 = hasattr(diffusers, "LTX2Pipeline")
needs_ltx2 = pytest.mark.skipif(not HAS_LTX2, reason="diffusers before 0.37 has no LTX-2")
needs_parts = pytest.mark.skipif(not HAS_LTX2, reason="diffusers 0.36 saves a modular pipeline without its parts")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {"flux": make_flux, "wan-image": lambda: make_wan_image_pipeline(two_transformers=True)}
    made |= {"ltx2": make_ltx2} if HAS_LTX2 else {}
    made["wan-modular"] = lambda: make_wan_modular_pipeline(make_wan_pipeline().components)
    home = tmp_path_factory.mktemp("models")
    for name, make in made.items():
        pipe = make()
        # Whether the index of a modular pipeline names the folder: the default of diffusers changes.
        modular = {"overwrite_modular_index": True} if name == "wan-modular" else {}
        pipe.save_pretrained(str(home / name), **modular)
    picture = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(picture).save(home / "picture.png")
    return {name: home / name for name in (*made, "picture.png")}


def run(command, folder, out, *more, size=64):
    sizes = ("--width", size, "--height", size, "--num-inference-steps", 2)
    options = ("--model", folder, "--output_dir", out, "--prompt", "a red square", *sizes, *more)
    result = psa(command, *options, "--attention_preset", PRESET)
    assert result.exit_code == 0, result.output
    return result


def cost_of(sidecar):
    return json.loads(sidecar.read_text())["cost"]


def test_an_image_is_a_png_and_made_once(folders, tmp_path):
    first = run("generate", folders["flux"], tmp_path, "--min_tokens", "0", size=256)
    with Image.open(tmp_path / "flux" / "image_0000.png") as image:
        assert (image.size, image.mode) == ((256, 256), "RGB")
    assert 0 < cost_of(tmp_path / "flux" / "image_0000.json")["attention_density"] < 1, first.output
    assert "1 skipped" in run("generate", folders["flux"], tmp_path, "--min_tokens", "0", size=256).output


def test_images_are_compared_and_looked_at(folders, tmp_path):
    run("compare", folders["flux"], tmp_path / "compare", "--min_tokens", "0", "--ceiling", "none", size=256)
    made = {file.name for file in (tmp_path / "compare").iterdir()}
    assert {"dense.png", "psa.png", "side_by_side.png", "case.json", "report.html"} <= made
    run("inspect", folders["flux"], tmp_path / "inspect", "--layers", "0", "--heads", "1", size=256)
    calls = json.loads((tmp_path / "inspect" / "inspect.json").read_text())["calls"]
    assert [call["place"]["layer"] for call in calls] == [0]


@needs_ltx2
def test_audio_is_in_the_file(folders, tmp_path):
    run("generate", folders["ltx2"], tmp_path, "--num_frames", "9", "--fps", "8", "--min_tokens", "0", size=32)
    with av.open(tmp_path / "ltx2" / "video_0000.mp4") as file:
        (video,), (audio,) = file.streams.video, file.streams.audio
        assert (video.frames, video.average_rate) == (9, 8)
        assert (audio.rate, audio.channels) == (16000, 2)
        assert sum(frame.samples for frame in file.decode(audio=0)) > 0
    assert cost_of(tmp_path / "ltx2" / "video_0000.json")["attention_density"] < 1


def test_a_video_from_a_picture(folders, tmp_path):
    picture = ["--image", str(folders["picture.png"]), "--num_frames", "5", "--guidance_scale", "1"]
    run("generate", folders["wan-image"], tmp_path, *picture, "--min_tokens", "0")
    settings = json.loads((tmp_path / "wan-image" / "video_0000.json").read_text())["settings"]
    assert settings["image"]["path"] == str(folders["picture.png"]) and len(settings["image"]["sha256"]) == 64


@needs_parts
def test_a_modular_pipeline(folders, tmp_path):
    """Made, compared and looked at; guidance, which its guider holds, acts; the folder may be moved."""
    frames = ["--num_frames", "5"]
    more = [*frames, "--min_tokens", "0"]
    folder = tmp_path / "moved"
    shutil.copytree(folders["wan-modular"], folder)
    made = {}
    for scale in ("2", "6"):  # 1 fails in diffusers 0.42 itself, whose encoder then has no negative prompt
        run("generate", folder, tmp_path / scale, *more, "--guidance_scale", scale, size=160)
        made[scale] = (tmp_path / scale / "moved" / "video_0000.mp4").read_bytes()
        assert cost_of(tmp_path / scale / "moved" / "video_0000.json")["attention_density"] < 1
    assert made["2"] != made["6"]
    run("compare", folder, tmp_path / "compare", *more, "--ceiling", "none", size=160)
    assert json.loads((tmp_path / "compare" / "case.json").read_text())
    run("inspect", folder, tmp_path / "inspect", *frames, "--layers", "0", "--heads", "1", size=160)
    assert len(json.loads((tmp_path / "inspect" / "inspect.json").read_text())["calls"]) == 1
    shutil.rmtree(folder / "vae")
    hidden = (folders["wan-modular"] / "vae").rename(tmp_path / "vae")  # the index may name it
    try:
        with pytest.raises(OSError, match="moved: the pipeline could not be loaded: .*could not load vae"):
            load_pipeline(
                find_source(str(folder)), device=torch.device("cpu"), dtype=torch.float32, width=None, height=None
            )
    finally:
        hidden.rename(folders["wan-modular"] / "vae")


@pytest.mark.parametrize(
    ("name", "more", "budget"),
    [
        pytest.param("flux", ("--width", "256", "--height", "256"), 0.95, id="image"),
        pytest.param(
            "ltx2", ("--width", "64", "--height", "64", "--num_frames", "25"), 0.5, marks=needs_ltx2, id="audio"
        ),
        pytest.param(
            "wan-modular",
            ("--width", "160", "--height", "160", "--num_frames", "5"),
            0.5,
            marks=needs_parts,
            id="modular",
        ),
    ],
)
def test_tuning(name, more, budget, folders, tmp_path):
    """A preset of the model's own layers, that a generation then takes; half of an image's tokens here are text."""
    model = ["--model", str(folders[name]), "--prompt", "a red square", "--num-inference-steps", "2", *more]
    out = tmp_path / "my.yaml"
    how = ["--warmup-steps", "0", "--parts", "2", "--query-blocks", "2", "--budget", str(budget), "--check"]
    result = psa("tune", *model, *how, "--output", out)
    assert result.exit_code == 0, result.output
    assert "PSNR to dense, dB" in result.output
    made = ["--config", str(out), "--attention_preset", "general/psa_tuned", "--output_dir", str(tmp_path)]
    result = psa("generate", *model, *made, "--min_tokens", "0")
    assert result.exit_code == 0, result.output
    (sidecar,) = tmp_path.rglob("*_0000.json")
    assert len(json.loads(sidecar.read_text())["settings"]["attention"]["config"]["budget_table"]) == 2
    assert cost_of(sidecar)["attention_density"] < 1


def test_sound_is_kept_as_it_is():
    """A tone comes back from the file, and two encodings are the same bytes."""
    wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000, dtype=np.float32)[None] * 0.5
    frames = np.zeros((8, 32, 32, 3), dtype=np.uint8)
    content = encode_video(frames, fps=8, audio=Audio(wave, 16000))
    assert content == encode_video(frames, fps=8, audio=Audio(wave, 16000))
    import io

    with av.open(io.BytesIO(content)) as file:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(heard[:16000]))
    assert abs(int(spectrum.argmax()) * 16000 / len(heard[:16000]) - 440) <= 2


@needs_ltx2
def test_defaults_are_the_pipelines_own(folders):
    (image,) = make_requests(find_source(str(folders["flux"])), ["x"], seed=0, settings={})
    assert image.is_image and (image.num_inference_steps, image.guidance_scale, image.width) == (28, 3.5, None)
    (video,) = make_requests(find_source(str(folders["ltx2"])), ["x"], seed=0, settings={})
    assert (video.width, video.height, video.fps, video.num_inference_steps) == (768, 512, 24.0, 30)
    assert choose_attention(find_source(str(folders["flux"]))).name.startswith("general/")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flux", {"num_frames": 5}, "num_frames: expected none, as FluxPipeline makes images"),
        ("flux", {"image": Path("x.png")}, "image: FluxPipeline does not take it"),
        ("flux", {"guidance_scale_2": 2.0}, "guidance_scale_2: FluxPipeline does not take it"),
        ("wan-image", {}, "image: expected one, which WanImageToVideoPipeline starts from; give --image FILE"),
        ("wan-image", {"image": Path("x.png")}, "image: there is no file x.png"),
    ],
    ids=["frames", "no image taken", "other guidance", "no image", "no file"],
)
def test_mistakes_are_told_before_loading(name, settings, message, folders):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_requests(find_source(str(folders[name])), ["x"], seed=0, settings=settings)


def test_a_pipeline_that_needs_more_is_refused(folders, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanAnimatePipeline"}))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    source, picture = find_source(str(tmp_path)), folders["picture.png"]
    with pytest.raises(ValueError, match="WanAnimatePipeline needs face_video, pose_video; call it in Python"):
        make_requests(source, ["x"], seed=0, settings={"image": picture})
    picture_file = tmp_path / "no.png"
    picture_file.write_text("no picture")
    with pytest.raises(ValueError, match="image: expected an image such as PNG or JPEG"):
        InputImage.read(picture_file)
