"""Pictures, frames and files of an inspection."""

from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from psa_triton.config import PSAConfig
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.inspect import inspect_attention
from psa_triton.tools.inspection.numbers import call_data, table
from psa_triton.tools.inspection.picture import draw, frame_map
from psa_triton.tools.inspection.qkv_file import qkv_bytes, read_qkv

CPU = torch.device("cpu")
GRID = (3, 8, 8)
CONFIG = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.4), 8: (0.4, 0.7), 0: (0.7, 1)})


def make_inputs(prefix=0):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, 192 + prefix, 16, generator=generator) for _ in "qkv")
    return AttentionInputs(q=q, k=k, v=v, grid=GRID, prefix_tokens=prefix)


@pytest.fixture(scope="module")
def inspection():
    return inspect_attention(make_inputs(prefix=32), CONFIG)


def test_a_map_has_levels_and_queries_in_their_places():
    """In raster order block 2 of 32 tokens is the first half of frame 1."""
    levels = torch.zeros(1, 2, 6, 6, dtype=torch.int8)
    levels[..., 2, :] = torch.tensor([1, 2, 4, 8, 0, 16])
    found = inspect_attention(make_inputs(), CONFIG.replace(use_rearrange=False), levels=levels)
    shown = frame_map(found, found.heads[0], 2, frames=2)
    halves = [[(1, 2), (4, 8), (0, 16)][frame][row // 4] for frame in range(3) for row in range(8)]
    assert torch.equal(shown.levels.view(24, 8), torch.tensor(halves, dtype=torch.int8)[:, None].expand(-1, 8))
    assert shown.queries[1, :4].all() and int(shown.queries.sum()) == 32
    assert shown.frames == (1, 2), "its own frame in the place of the nearest"


def test_in_another_order_the_same_keys_are_read(inspection):
    head = inspection.heads[0]
    shown = frame_map(inspection, head, 3, frames=3)
    levels, own = shown.levels.flatten(), shown.queries.flatten().nonzero().flatten()
    assert sorted(own.tolist()) == sorted((head.query_places[96:128] - 32).tolist())
    for block, places in enumerate(head.key_places.split(32)[1:], start=1):
        assert (levels[places - 32] == head.levels[3, block]).all()


@pytest.mark.parametrize("variant", ["frames and prefix", "no grid", "nothing exact"])
def test_a_picture_is_drawn_complete(variant, inspection):
    if variant == "no grid":
        inputs = make_inputs()
        inspection = inspect_attention(AttentionInputs(q=inputs.q, k=inputs.k), CONFIG)
    elif variant == "nothing exact":
        inspection = inspect_attention(make_inputs(), CONFIG, query_blocks=0)
    with Image.open(BytesIO(draw(inspection, inspection.heads[1], "made up"))) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
        assert image.width == 1300
    assert {(0x08, 0x30, 0x6B), (0xC6, 0xDB, 0xEF), (0xEE, 0xEE, 0xEE)} <= colours, "levels 1, 8 and 0"


def test_numbers_of_a_call(inspection):
    place = {"layer": 2, "step": 11}
    data = call_data(place, inspection)
    assert (data["query_tokens"], data["key_blocks"], data["prefix_tokens"]) == (224, 7, 32)
    assert [head["picture"] for head in data["heads"]] == [f"layer_02_step_11_head_0{i}.png" for i in range(2)]
    for head in data["heads"]:
        assert sum(level["pairs"] for level in head["levels"]) == pytest.approx(1)
        assert sum(level["mass"] for level in head["levels"]) == pytest.approx(1)
        assert head["density"] < head["density_with_estimation"] < 1
    columns, lines = table([data])
    assert columns[:5] == ["layer", "step", "head", "density", "% of pairs at 1/2/4/8/0"]
    assert len(lines) == 2 and all(len(line) == len(columns) for line in lines)
    assert lines[1][:3] == ["2", "11", "1"]


def test_saved_tensors_come_back_with_grid_and_prefix(tmp_path):
    inputs, path = make_inputs(prefix=5), tmp_path / "qkv.safetensors"
    path.write_bytes(qkv_bytes(inputs, {"preset": "tiny-wan/psa_balanced"}))
    file = read_qkv(path, CPU)
    assert file.header["preset"] == "tiny-wan/psa_balanced"
    back = file.inputs()
    assert (back.grid, back.prefix_tokens) == (GRID, 5)
    for name in "qkv":
        assert torch.equal(getattr(back, name), getattr(inputs, name))
    told = file.inputs(grid=(197, 1, 1), prefix_tokens=0)
    assert (told.grid, told.prefix_tokens) == ((197, 1, 1), 0)


def test_files_that_hold_no_q_and_k(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_qkv(tmp_path / "absent.safetensors", CPU)
    (tmp_path / "text").write_text("q k v")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_qkv(tmp_path / "text", CPU)
    save_file({"k": torch.zeros(1, 1, 8, 8), "query": torch.zeros(1, 1, 8, 8)}, tmp_path / "other")
    with pytest.raises(ValueError, match="found no q among: k, query"):
        read_qkv(tmp_path / "other", CPU)
