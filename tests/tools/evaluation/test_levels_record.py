import pytest
import torch

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import LevelRecord
from psa_triton.ordering import grid_order
from psa_triton.tools.evaluation.levels_record import CallSite, LevelRecording
from psa_triton.tools.generation import Attention, generate_video

CONFIG = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.5), 0: (0.5, 1)})
LEVELS = torch.tensor([0, 1, 2, 4, 8, 16, 32, 64, 0], dtype=torch.int8)


def record(layer=0, step=0, heads=2, levels=None):
    """A call of a batch of two, in which the second differs: all its levels are 1."""
    if levels is None:
        levels = LEVELS.roll(layer).expand(2, heads, 3, -1).clone()
        levels[0] = 1
    densities = torch.tensor([[0.25] * heads, [0.75] * heads])
    return LevelRecord("transformer", layer, step, CONFIG, levels, densities, (3, 4, 8), 0, None)


def unpacked(levels, head):
    """Levels of a head, read as the page reads them: codes of 4 bits, rows of whole bytes."""
    packed = levels.packed[levels.heads.index(head)]
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return torch.where(codes > 0, 2 ** (codes.int() - 1), 0)


def test_packed_levels_come_back_for_an_odd_number_of_blocks():
    recording = LevelRecording()
    recording(record())
    entry = recording.maps[CallSite("transformer", 0, 0)]
    assert entry.packed.shape == (2, 3, 5) and entry.packed.dtype == torch.uint8
    assert torch.equal(unpacked(entry, 1)[:, :9], LEVELS.expand(3, -1)), "of the last batch entry"


def test_the_first_call_of_a_step_is_mapped_and_the_mean_of_all_is_its_density():
    recording = LevelRecording()
    recording(record())
    recording(record(levels=torch.ones(2, 2, 3, 9, dtype=torch.int8)))
    site = CallSite("transformer", 0, 0)
    assert torch.equal(unpacked(recording.maps[site], 0)[0, :9], LEVELS)
    assert recording.densities == {site: (0.5, 0.5)}


def test_memory_is_bounded_by_letting_every_second_step_and_then_layer_go():
    # A map of one head has 3 x 5 bytes, of two 30.
    recording = LevelRecording(max_bytes=30 * 9)
    for step in range(16):
        for layer in range(4):
            recording(record(layer, step))
    assert sum(entry.packed.numel() for entry in recording.maps.values()) <= recording.max_bytes
    assert sorted({site.step for site in recording.maps}) == [0, 8]
    assert sorted({site.layer for site in recording.maps}) == [0, 1, 2, 3]
    assert len(recording.densities) == 64


def test_one_step_of_many_layers_is_thinned_by_layer():
    recording = LevelRecording(max_bytes=30 * 8)
    for layer in range(10):
        recording(record(layer, None))
    assert sorted(site.layer for site in recording.maps) == [0, 2, 4, 6, 8]


def test_of_many_heads_an_even_choice_is_kept():
    recording = LevelRecording(max_bytes=8 * 15 * 4)
    recording(record(heads=16))
    (entry,) = recording.maps.values()
    assert entry.heads == (0, 4, 8, 12)


def test_a_run_is_told_of_with_its_layout(pipe, request_320, sparse):
    recording = LevelRecording()
    video = generate_video(pipe, request_320, sparse, on_levels=recording)
    assert torch.equal(recording.layout["order"].permutation, grid_order("Gilbert", (5, 8, 8)).permutation)
    known = {"grid": [5, 8, 8], "prefix": 0, "block_m": 64, "block_n": 32, "query_blocks": 5, "key_blocks": 10}
    assert recording.layout.items() >= {**known, "in_place": True}.items()
    assert set(recording.maps) == {CallSite("transformer", layer, 1) for layer in (0, 1)}, "step 0 is warm-up"
    for densities in recording.densities.values():
        assert densities == pytest.approx((0.35, 0.35))
    levels = unpacked(recording.maps[CallSite("transformer", 0, 1)], 0)
    assert {level: int((levels == level).sum()) for level in (1, 2, 0)} == {1: 5 * 2, 2: 5 * 3, 0: 5 * 5}
    assert len(recording.densities) == video.stats.summary.sparse_calls == 2


def test_clusters_have_no_place(pipe, request_320, sparse):
    recording = LevelRecording()
    config = sparse.config.replace(rearrange_method="SemanticAware", warmup_steps=0)
    generate_video(pipe, request_320, Attention(name="hand/clusters", config=config), on_levels=recording)
    assert recording.layout["order"] is None
    assert not recording.layout["in_place"]
