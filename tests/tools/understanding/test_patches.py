import json
import shutil

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

from psa_triton.tools.understanding import Media, Patcher, read_media

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def video(frames, height=56, width=84):
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Media("video", pixels, fps=2.0, total_frames=frames)


def test_an_image_becomes_what_transformers_makes_of_it(qwen_folder, clips):
    frame = read_media(clips / "bikes.mp4", "video", num_frames=1).frames
    expected = Qwen2VLImageProcessorPil.from_pretrained(qwen_folder)(frame[0], return_tensors="pt")
    patches = Patcher(qwen_folder).cut(Media("image", frame, fps=0.0, total_frames=1))
    assert list(patches.grid) == expected["image_grid_thw"][0].tolist()
    assert torch.equal(patches.values, expected["pixel_values"])
    assert patches.tokens == len(patches.values) // 4 <= 64


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_patch_of_a_video_holds_two_frames(qwen_folder, frames):
    """Frames of 4x6 patches, which are read as they are: every patch is looked up in the pixels."""
    media = video(frames)
    patches = Patcher(qwen_folder).cut(media)
    assert patches.grid == ((frames + 1) // 2, 4, 6)
    assert patches.tokens == patches.grid[0] * 2 * 3
    normal = (torch.from_numpy(media.frames).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    row = 0
    for t in range(patches.grid[0]):
        pair = normal[[2 * t, min(2 * t + 1, frames - 1)]]
        # Four patches that become one visual token lie next to each other.
        for y, x in [(y + dy, x + dx) for y in (0, 2) for x in (0, 2, 4) for dy in (0, 1) for dx in (0, 1)]:
            patch = pair[:, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
            expected = patch.transpose(0, 1).flatten()  # channel, frame, row, column
            torch.testing.assert_close(patches.values[row], expected, rtol=0, atol=1e-5)
            row += 1
    assert row == len(patches.values)


def copy_with(folder, tmp_path, settings):
    """A copy of the image settings alone, some files changed."""
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    for name, content in settings.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "frames", "tokens"),
    [
        pytest.param({}, 2, 768, id="authors-own"),
        pytest.param({}, 600, 384, id="authors-own-many-frames"),
        pytest.param({"video_preprocessor_config.json": {"min_pixels": 784, "max_pixels": 15 * 784}}, 2, 15, id="old"),
        pytest.param(
            {"processor_config.json": {"video_processor": {"size": {"shortest_edge": 784, "longest_edge": 20 * 784}}}},
            *(2, 20),
            id="new",
        ),
    ],
)
def test_how_many_tokens_a_frame_has_at_most(qwen_folder, tmp_path, settings, frames, tokens):
    patcher = Patcher(copy_with(qwen_folder, tmp_path, settings))
    assert patcher.frame_size(video(frames, 1, 1))["longest_edge"] == tokens * 784
    if frames == 2:
        assert patcher.cut(video(2, 1400, 1400)).tokens == int(tokens**0.5) ** 2


def test_small_frames_are_enlarged_as_the_model_was_trained(qwen_folder, tmp_path):
    patches = Patcher(copy_with(qwen_folder, tmp_path, {})).cut(video(2, 144, 176))
    assert patches.tokens >= 128


def test_max_pixels(qwen_folder):
    patcher = Patcher(qwen_folder, max_pixels=6 * 784)
    assert patcher.cut(video(4, 280, 420)).grid == (2, 4, 6)
    with pytest.raises(ValueError, match="max_pixels: expected at least 784"):
        Patcher(qwen_folder, max_pixels=783)


def test_a_frame_that_is_too_long(qwen_folder):
    with pytest.raises(ValueError, match="input: expected one side at most 200 times the other, got 300x1 pixels"):
        Patcher(qwen_folder).cut(video(2, 1, 300))
