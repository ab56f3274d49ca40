from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from psa_triton.tools.evaluation.ceiling import CeilingKind, choose_ceiling
from psa_triton.tools.generation import DENSE, generate_video

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "label"),
    [
        ("dtype", CPU, torch.float32, "dense in bfloat16"),
        ("auto", CUDA, torch.bfloat16, "dense by SDPA's efficient attention backend"),
        ("auto", CUDA, torch.float32, "dense in bfloat16"),
        ("dtype", CUDA, torch.bfloat16, "dense in float32"),
        ("backend", CPU, torch.float32, "dense by SDPA's math backend"),
        ("backend", CUDA, torch.float32, "dense by SDPA's math backend"),
    ],
    ids=str,
)
def test_the_other_way_is_named(kind, device, dtype, label):
    assert choose_ceiling(kind, device, dtype).label == label


def test_none_is_none():
    assert choose_ceiling("none", CPU, torch.float32) is None
    assert set(get_args(CeilingKind)) == {"auto", "backend", "dtype", "none"}


def test_a_cpu_with_products_in_bfloat16_uses_them(monkeypatch):
    monkeypatch.setattr("psa_triton.tools.evaluation.ceiling.multiplies", lambda dtype: True)
    assert choose_ceiling("auto", CPU, torch.float32).label == "dense in bfloat16"


def test_a_cpu_without_them_rounds_the_weights_alone(pipe, request_320, monkeypatch):
    monkeypatch.setattr("psa_triton.tools.evaluation.ceiling.multiplies", lambda dtype: dtype != torch.bfloat16)
    assert choose_ceiling("auto", CPU, torch.bfloat16).label == "dense in float32"
    ceiling = choose_ceiling("auto", CPU, torch.float32)
    assert ceiling.label == "dense with weights rounded to bfloat16"
    first = generate_video(pipe, request_320, DENSE).frames
    weight = pipe.transformer.blocks[0].attn1.to_q.weight
    own = weight.detach().clone()
    with ceiling.entered(pipe):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, own.bfloat16().float())
        second = generate_video(pipe, request_320, DENSE).frames
    assert 0 < np.abs(first - second).max() < 0.2
    assert torch.equal(weight, own)


def test_another_dtype_changes_the_video_and_leaves_the_weights(pipe, request_320):
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    first = generate_video(pipe, request_320, DENSE).frames
    with choose_ceiling("dtype", CPU, torch.float32).entered(pipe):
        assert pipe.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
        assert pipe.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
        second = generate_video(pipe, request_320, DENSE).frames
    assert 0 < np.abs(first - second).max() < 0.2
    after = pipe.transformer.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == dict.fromkeys(before, torch.float32)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    np.testing.assert_array_equal(generate_video(pipe, request_320, DENSE).frames, first)


def test_weights_come_back_after_an_error(pipe):
    with pytest.raises(RuntimeError, match="stop"), choose_ceiling("dtype", CPU, torch.float32).entered(pipe):
        raise RuntimeError("stop")
    assert pipe.transformer.dtype == torch.float32


def test_another_backend_is_the_one_that_runs(pipe):
    q = torch.rand(1, 1, 4, 8)
    with choose_ceiling("backend", CPU, torch.float32).entered(pipe):
        assert torch._fused_sdp_choice(q, q, q) == SDPBackend.MATH.value
    assert torch._fused_sdp_choice(q, q, q) != SDPBackend.MATH.value
