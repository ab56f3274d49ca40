from argparse import Namespace

import torch
from recipe import make_tokenizer, make_transformer
from safetensors.torch import load_file
from train_tiny_wan import Size, SparseSelfAttention, Trainer, schedule

from psa_triton.tools.builtin import tiny_wan_path


def trainer(work, stages, **changes):
    options = dict(start=tiny_wan_path(), device="cpu", lr=1e-3, decay=0.9, warmup=2, harder=0.5, shift=4.0, seed=0)
    options |= dict(log_every=60.0, save_every=60.0, compile=False)
    return Trainer(Namespace(**(options | dict(work=str(work), stages=stages) | changes)))


def test_sizes_of_a_stage_take_turns():
    small, middle, large = Size((1, 2, 2), 4, 1.0), Size((1, 4, 4), 2, 1.0), Size((1, 6, 6), 1, 0.25)
    assert schedule("1x2x2:4:2:1,1x2x2:4+1x4x4:2:3:1,1x6x6:1:1:0.25") == [
        *[small, small],
        *[small, middle, small],
        large,
    ]


def test_a_start_keeps_the_pipelines_weights_and_its_words(tmp_path):
    weights = trainer(tmp_path, "1x2x2:1:1:1").average
    for part, file in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for name, tensor in load_file(tiny_wan_path() / part / f"{file}.safetensors").items():
            assert torch.equal(weights[f"{part}.{name}"][: len(tensor)], tensor), name
    assert len(weights["text_encoder.shared.weight"]) == len(make_tokenizer())


@torch.no_grad()
def test_dense_self_attention_is_that_of_diffusers():
    torch.manual_seed(0)
    model = make_transformer().eval()
    torch.nn.init.normal_(model.proj_out.weight)
    inputs = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 4, 96)
    expected = model(*inputs, return_dict=False)[0]
    own = SparseSelfAttention()
    (own.size,) = schedule("2x4x4:1:1:1")
    for block in model.blocks:
        block.attn1.set_processor(own)
    torch.testing.assert_close(model(*inputs, return_dict=False)[0], expected)


def test_a_run_that_was_cut_off_goes_on_as_if_unbroken(tmp_path):
    stages = "2x4x6:2:2:1,2x8x8:1:3:0.5"
    whole = trainer(tmp_path / "whole", stages)
    whole.run()

    first = trainer(tmp_path / "cut", stages)
    for size in schedule(stages)[:3]:
        first.advance(size, steps=5)
    first.save()
    second = trainer(tmp_path / "cut", stages)
    second.run()

    assert (second.step, second.samples) == (5, 7)
    for name, tensor in whole.average.items():
        assert torch.equal(second.average[name], tensor), name
        assert tensor.isfinite().all(), name
