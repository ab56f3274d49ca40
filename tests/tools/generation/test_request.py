import pytest
from PIL import Image

from psa_triton.tools.generation import find_source, make_requests
from psa_triton.tools.generation.request import InputImage, read_prompts_file


def test_prompts_are_read_one_a_line_without_blanks_and_comments(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red square\n\n  # a comment\n  a blue\u2028ring \r\nten # cats\n", encoding="utf-8")
    assert read_prompts_file(file) == ["a red square", "a blue\u2028ring", "ten # cats"]


def test_requests_have_the_models_defaults_where_nothing_is_given_and_a_seed_each():
    settings = {"width": 832, "height": 480, "num_frames": None, "guidance_scale": 3.0, "negative_prompt": None}
    first, second = make_requests(find_source("wan21_14b"), ["one", "two"], seed=7, settings=settings)
    assert (first.prompt, first.seed, second.prompt, second.seed) == ("one", 7, "two", 8)
    assert (first.width, first.height, first.num_frames) == (832, 480, 69)
    assert (first.guidance_scale, first.num_inference_steps, first.fps) == (3.0, 50, 16)


def test_two_transformers_have_a_guidance_each():
    (request,) = make_requests(find_source("wan22_a14b"), ["one"], seed=0, settings={})
    assert (request.guidance_scale, request.guidance_scale_2) == (4.0, 3.0)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        pytest.param("one", {"width": 100}, "width", id="size"),
        pytest.param("one", {"height": 100_000}, "height: expected at most 16384", id="beyond-all-positions"),
        pytest.param("one", {"num_inference_steps": 0}, "num_inference_steps: expected 1 to 1000, got 0", id="steps"),
        pytest.param("one", {"num_inference_steps": 1001}, "num_inference_steps: expected 1 to 1000", id="many-steps"),
        pytest.param("one", {"fps": 0}, "fps: expected 1 to 1000, got 0", id="fps"),
        pytest.param("one", {"fps": 99_999_999_999}, "fps: expected 1 to 1000", id="many-frames-per-second"),
        pytest.param("one", {"guidance_scale": -1.0}, "guidance_scale: expected a number >= 0", id="guidance"),
        pytest.param("one", {"guidance_scale": float("nan")}, "guidance_scale: expected a number", id="nan"),
        pytest.param("one", {"guidance_scale": float("inf")}, "guidance_scale: expected a number", id="inf"),
        pytest.param("one", {"guidance_scale_2": 3.0}, "guidance_scale_2: wan21_14b has one", id="second-guidance"),
        pytest.param("  ", {}, "prompt: expected some text", id="prompt"),
        pytest.param("caf\udcc3\udca9", {}, "prompt: expected UTF-8, got other bytes; set LC_ALL", id="no-utf-8"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        make_requests(find_source("wan21_14b"), [prompt], seed=0, settings=settings)


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64 - 1], ids=["first", "second"])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(ValueError, match="seed: expected a number of 64 bits"):
        make_requests(find_source("wan21_14b"), ["one", "two"], seed=seed, settings={})


def test_a_picture_stands_as_its_camera_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.new("RGB", (96, 64)).save(tmp_path / "phone.jpg", exif=exif)
    image = InputImage.read(tmp_path / "phone.jpg").load()
    assert (image.size, image.mode) == ((64, 96), "RGB")


def test_a_picture_of_more_than_can_be_meant_is_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="image: the image .* cannot be read: Image size .* exceeds limit"):
        InputImage.read(tmp_path / "large.png")
