import pytest
import torch

from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.shapes import SHAPES, find_shape

# name: (section, heads, key heads, dim, grid, text)
KNOWN = {
    "tiny-wan": ("tiny-wan", 3, 3, 64, (8, 24, 24), 0),
    "wan21-480p": ("Wan2.1_1.3b", 12, 12, 128, (21, 30, 52), 0),
    "wan21-720p": ("Wan2.1_1.3b", 12, 12, 128, (21, 45, 80), 0),
    "cogvideo-480p": ("CogVideo_5b", 48, 48, 64, (13, 30, 45), 226),
    "cogvideo15-768p": ("CogVideo1.5_5b", 48, 48, 64, (11, 48, 85), 226),
    "qwen25vl-32k": ("Qwen2.5-VL", 28, 4, 128, (32, 32, 32), 0),
}


def described(shape):
    return shape.section, shape.heads, shape.key_heads, shape.dim, shape.grid, shape.prefix_tokens


def test_shapes_are_those_of_the_models():
    assert {name: described(find_shape(name)) for name in SHAPES}.items() >= KNOWN.items()
    assert find_shape("wan21-480p").video == "832x480, 81 frames, 1.3B"
    assert find_shape("qwen25vl-32k").is_causal and find_shape("qwen25vl-32k").tokens == 32_768


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("wan21_1.3b", "wan21-720p"),
        ("Wan2.1_1.3b", "wan21-720p"),
        ("tiny-wan", "tiny-wan"),
        ("cogvideo_5b_lora", "cogvideo-480p"),
        ("qwen2.5-vl-7b", "qwen25vl-32k"),
        ("skyreels_v2_14b", "skyreels_v2_14b"),
        ("HunyuanVideo1.5", "hunyuan_video_1.5_480p"),
    ],
)
def test_a_model_stands_for_its_largest_shape(model, shape):
    assert find_shape(model).name == shape


@pytest.mark.parametrize(
    ("model", "heads", "dim", "grid"),
    [
        ("framepack", 24, 128, (9, 45, 80)),  # a section of its videos
        ("allegro", 24, 96, (22, 45, 80)),
        ("cosmos_predict2.5_14b", 40, 128, (24, 44, 80)),
        ("kandinsky5_lite", 28, 64, (31, 32, 48)),
        ("z-image-turbo", 30, 128, (1, 64, 64)),
    ],
)
def test_other_models_have_their_default_size(model, heads, dim, grid):
    shape = find_shape(model)
    assert (shape.heads, shape.dim, shape.grid) == (heads, dim, grid)


def test_a_model_without_one_is_told_those_that_have():
    with pytest.raises(ValueError, match=r"unknown shape 'minimax_h3'\. Known: .*wan21_i2v_14b") as told:
        find_shape("minimax_h3")
    known = str(told.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert all(find_shape(name) for name in known)


def test_shrinking_keeps_the_text_and_the_proportions():
    small = find_shape("cogvideo-480p").shrunk(226 + 13 * 30 * 45 // 27)
    assert small.grid == (4, 10, 15)  # 13, 30, 45 over three
    assert small.tokens == 4 * 10 * 15 + 226


def test_fewer_key_heads_keep_their_query_heads():
    assert find_shape("qwen25vl-32k").with_heads(1).heads == 7


def test_tokens_attend_to_their_surroundings():
    shape = find_shape("wan21-480p").shrunk(2000).with_heads(1)
    q, k, v = local_inputs(shape, device=torch.device("cpu"), dtype=torch.float32)
    assert q.shape == k.shape == v.shape == (1, 1, shape.tokens, 128)
    mass = (q @ k.mT / 128**0.5).softmax(-1)[0, 0]
    largest = mass.sort(dim=-1, descending=True).values
    assert 0.5 < largest[:, : shape.tokens // 10].sum(-1).mean() < 0.99
    assert (mass.argmax(-1) == torch.arange(shape.tokens)).float().mean() > 0.9


def test_inputs_are_the_same_every_time_and_in_model_layout():
    shape = find_shape("qwen25vl-32k").shrunk(512)
    first, again = (local_inputs(shape, device=torch.device("cpu"), dtype=torch.bfloat16) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)
        assert x.transpose(1, 2).stride(-1) == 1
    assert first[0].shape == (1, 28, shape.tokens, 128)
    assert first[1].shape == (1, 4, shape.tokens, 128)
