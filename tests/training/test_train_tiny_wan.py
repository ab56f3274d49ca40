from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from recipe import make_tokenizer, make_transformer
from safetensors.torch import load_file
from train_tiny_wan import (
    STRETCH,
    SparseSelfAttention,
    Trainer,
    parse_stages,
    scale_positions,
    schedule,
    stretch_positions,
)

from psa_triton.tools.builtin import tiny_wan_path


def trainer(work: Path, stages: str, **changes: object) -> Trainer:
    options = dict(
        start=tiny_wan_path(), stretch=False, device="cpu", lr=1e-3, decay=0.9, warmup=2, harder=0.5, anneal=4, seed=0
    )
    options |= dict(log_every=60.0, save_every=60.0, compile=False)
    return Trainer(Namespace(**(options | dict(work=str(work), stages=stages) | changes)))


def test_every_fourth_step_of_a_later_stage_is_an_earlier_stages() -> None:
    small, middle, large = parse_stages("1x2x2:4:2:1,1x4x4:2:4:1,1x6x6:1:8:0.25")
    assert schedule([small, middle, large]) == [
        *[small] * 2,
        *[middle] * 3,
        small,
        *[large] * 3,
        small,
        *[large] * 3,
        middle,
    ]


@torch.no_grad()
def test_stretched_positions_are_those_of_the_next_lower_frequency() -> None:
    torch.manual_seed(0)
    model = make_transformer().eval()
    torch.nn.init.normal_(model.proj_out.weight)
    inputs = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 4, 96)
    rope = model.rope
    plain = rope.freqs_cos.clone(), rope.freqs_sin.clone()
    for table in (rope.freqs_cos, rope.freqs_sin):  # channels: 24 of time, 20 of height, 20 of width
        table[:, 24:44] = table[:, 24:44].roll(-2, 1)
        table[:, 44:64] = table[:, 44:64].roll(-2, 1)
    expected = model(*inputs, return_dict=False)[0]

    rope.freqs_cos.copy_(plain[0])
    rope.freqs_sin.copy_(plain[1])
    before = model(*inputs, return_dict=False)[0]
    stretch_positions(model)
    after = model(*inputs, return_dict=False)[0]

    torch.testing.assert_close(after, expected)
    assert (after - before).abs().max() > 1e-3


def test_a_start_keeps_the_pipelines_weights_and_its_words(tmp_path: Path) -> None:
    weights = trainer(tmp_path, "1x2x2:1:1:1").average
    for part, file in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for name, tensor in load_file(tiny_wan_path() / part / f"{file}.safetensors").items():
            assert torch.equal(weights[f"{part}.{name}"][: len(tensor)], tensor), name
    assert len(weights["text_encoder.shared.weight"]) == len(make_tokenizer())


@torch.no_grad()
def test_scaled_positions_undo_the_stretch() -> None:
    torch.manual_seed(0)
    model = make_transformer()
    plain = model.rope.freqs_cos.clone(), model.rope.freqs_sin.clone()
    scale_positions(model, 1.0)
    torch.testing.assert_close((model.rope.freqs_cos, model.rope.freqs_sin), plain)
    scale_positions(model, STRETCH)
    for scaled, before in zip((model.rope.freqs_cos, model.rope.freqs_sin), plain, strict=True):
        assert torch.equal(scaled[:, :24], before[:, :24])  # time
        torch.testing.assert_close(scaled[:64, 26:44], before[:64, 24:42])  # height, by one frequency
        torch.testing.assert_close(scaled[:64, 46:], before[:64, 44:62])


@torch.no_grad()
def test_dense_self_attention_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    model = make_transformer().eval()
    torch.nn.init.normal_(model.proj_out.weight)
    inputs = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 4, 96)
    expected = model(*inputs, return_dict=False)[0]
    own = SparseSelfAttention()
    (own.stage,) = parse_stages("2x4x4:1:1:1")
    for block in model.blocks:
        block.attn1.set_processor(own)
    torch.testing.assert_close(model(*inputs, return_dict=False)[0], expected)


def test_a_run_that_was_cut_off_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    stages = "2x4x6:2:2:1,2x8x8:1:3:0.5"
    whole = trainer(tmp_path / "whole", stages)
    whole.run()

    first = trainer(tmp_path / "cut", stages)
    for stage in schedule(parse_stages(stages))[:3]:
        first.advance(stage, steps=5)
    first.save()
    second = trainer(tmp_path / "cut", stages)
    second.run()

    assert (second.step, second.samples) == (5, 7)
    for name, tensor in whole.average.items():
        assert torch.equal(second.average[name], tensor), name
        assert tensor.isfinite().all(), name
