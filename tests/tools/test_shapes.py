from __future__ import annotations

import pytest
import torch

from psa_triton.models import PRESET_SECTIONS
from psa_triton.presets import load_presets_file
from psa_triton.tools.bench.inputs import local_inputs
from psa_triton.tools.shapes import SHAPES, find_shape


def test_token_counts_are_those_of_the_models() -> None:
    tokens = {name: shape.tokens for name, shape in SHAPES.items()}
    assert tokens["tiny-wan"] == 8 * 12 * 12
    assert tokens["wan21-480p"] == 32_760
    assert tokens["wan21-720p"] == 75_600
    assert tokens["wan22-a14b-720p"] == 69_120
    assert tokens["cogvideo-480p"] == 17_776


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_presets(name: str) -> None:
    assert SHAPES[name].section in load_presets_file().sections


def test_an_unknown_shape_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="wan21-720p"):
        find_shape("wan21-720")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("wan21_1.3b", "wan21-720p"),
        ("Wan2.1_1.3b", "wan21-720p"),
        ("tiny-wan", "tiny-wan"),
        ("cogvideo_5b_lora", "cogvideo-480p"),
        ("qwen2.5-vl-7b", "qwen25vl-32k"),
    ],
)
def test_a_model_stands_for_its_largest_shape(model: str, shape: str) -> None:
    assert find_shape(model).name == shape


@pytest.mark.parametrize("key", PRESET_SECTIONS)
def test_every_model_has_one(key: str) -> None:
    assert find_shape(key).section == PRESET_SECTIONS[key]


def test_shrinking_keeps_the_text_and_the_proportions() -> None:
    small = find_shape("cogvideo-480p").shrunk(226 + 13 * 30 * 45 // 27)
    assert small.grid == (4, 10, 15)  # 13, 30, 45 over three
    assert small.tokens == 4 * 10 * 15 + 226


def test_fewer_key_heads_keep_their_query_heads() -> None:
    assert find_shape("qwen25vl-32k").with_heads(1).heads == 7


def test_tokens_attend_to_their_surroundings() -> None:
    shape = find_shape("wan21-480p").shrunk(2000).with_heads(1)
    q, k, v = local_inputs(shape, device=torch.device("cpu"), dtype=torch.float32, ordered=False)
    assert q.shape == k.shape == v.shape == (1, 1, shape.tokens, 128)
    mass = (q @ k.mT / 128**0.5).softmax(-1)[0, 0]
    largest = mass.sort(dim=-1, descending=True).values
    assert 0.5 < largest[:, : shape.tokens // 10].sum(-1).mean() < 0.99
    assert (mass.argmax(-1) == torch.arange(shape.tokens)).float().mean() > 0.9


def test_inputs_are_the_same_every_time_and_in_model_layout() -> None:
    shape = find_shape("qwen25vl-32k").shrunk(512)
    first, again = (local_inputs(shape, device=torch.device("cpu"), dtype=torch.bfloat16) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)
        assert x.transpose(1, 2).stride(-1) == 1
    assert first[0].shape == (1, 28, shape.tokens, 128)
    assert first[1].shape == (1, 4, shape.tokens, 128)
