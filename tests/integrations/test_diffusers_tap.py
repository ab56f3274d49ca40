"""What a `QKVTap` hands out is what the layer attends with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_pipelines import make_cogvideox_pipeline, make_video, make_wan_pipeline
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import LevelRecord, apply_psa
from psa_triton.integrations.diffusers.tap import QKVTap
from psa_triton.levels import levels_of

READ_ALL = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)})
SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 8: (0.3, 0.6), 0: (0.6, 1)})
PIPELINES = [pytest.param(make_wan_pipeline, id="wan"), pytest.param(make_cogvideox_pipeline, id="cogvideox")]


@pytest.mark.parametrize("make", PIPELINES)
def test_attending_with_them_gives_the_output_of_the_layer(make: Any) -> None:
    pipe = make()
    module = next(module for module in pipe.transformer.modules() if hasattr(module, "processor"))
    outputs: list[torch.Tensor] = []
    taken: list[tuple[torch.Tensor, ...]] = []

    def keep_output(_: Any, args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, torch.Tensor) else torch.cat(output[::-1], dim=1))

    def keep(record: LevelRecord) -> None:
        if record.layer == 0:
            taken.append(tap.read())

    module.register_forward_hook(keep_output)
    with QKVTap(pipe) as tap, apply_psa(pipe, READ_ALL, on_levels=keep):
        make_video(pipe, steps=2)
    assert len(taken) == len(outputs) >= 2
    with torch.no_grad():
        for (q, k, v), output in zip(taken, outputs, strict=True):
            attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            torch.testing.assert_close(module.to_out[0](attended), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", PIPELINES)
def test_the_levels_of_the_call_follow_from_them(make: Any) -> None:
    pipe = make()
    calls = []

    def keep(record: LevelRecord) -> None:
        q, k, v = tap.read()
        calls.append((levels_of(q, k, v, SPARSE, prefix_tokens=record.prefix_tokens), record.levels))

    with QKVTap(pipe) as tap, apply_psa(pipe, SPARSE, on_levels=keep):
        make_video(pipe, steps=1)
    assert len(calls) >= 2
    for chosen, read in calls:
        assert torch.equal(chosen, read)


def test_reading_changes_nothing_and_hooks_go_away() -> None:
    pipe = make_wan_pipeline()
    with apply_psa(pipe, SPARSE):
        plain = make_video(pipe, steps=1)
    tap = QKVTap(pipe)
    with apply_psa(pipe, SPARSE, on_levels=lambda record: tap.read()):
        assert torch.equal(make_video(pipe, steps=1), plain)
    tap.remove()
    assert not any(module._forward_pre_hooks for module in pipe.transformer.modules())
    with pytest.raises(RuntimeError, match="expected an attention call under way"):
        tap.read()
