"""Malformed input of every kind that people hand over: each a clear error, of the kind that the command line shows.

A clear error says what is at fault and where, and what is allowed or to be done; it shows nothing of the libraries
inside. Tensors have tests of their own.
"""

import json
import struct
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save, save_file

from psa_triton.config import PSAConfig
from psa_triton.presets import PresetError, load_preset, load_presets_file
from psa_triton.tools.evaluation.case import Case, read_finished
from psa_triton.tools.generation import VideoRequest, find_source
from psa_triton.tools.generation.batch import plan_jobs
from psa_triton.tools.generation.lora import find_lora, load_lora
from psa_triton.tools.generation.request import read_prompts_file
from psa_triton.tools.inspection.qkv_file import read_qkv


def check_words(error, *expected):
    text = str(error)
    for words in expected:
        assert words in text, text
    for foreign in (
        "Traceback",
        "For further information",
        "[Errno",
        "pydantic.dev",
        "Input should be",
        "after validation",
    ):
        assert foreign not in text, text


CONFIGS = [
    ({"blok_n": 32}, "blok_n", "did you mean 'block_n'?"),
    ({"warmup": 3}, "warmup", "did you mean 'warmup_steps'?"),
    ({"impl": "cpu"}, "impl", "unknown key 'impl'"),
    ({"block_n": 48}, "block_n", "expected 32, 64 or 128, got 48"),
    ({"block_n": "many"}, "block_n", "expected 32, 64 or 128, got 'many'"),
    ({"tile_n": 8}, "tile_n", "expected 16, 32, 64 or 128, got 8"),
    ({"mask_mode": "top_k"}, "mask_mode", "expected 'topk', 'thresholdbound' or 'budget', got 'top_k'"),
    ({"mask_ratios": {}}, "mask_ratios", "expected at least one level, got none"),
    ({"mask_ratios": None}, "mask_ratios", "expected a mapping, got None"),
    ({"mask_ratios": {1: 1}}, "mask_ratios.1", "expected a list, got 1"),
    ({"mask_ratios": {1: [0]}}, "mask_ratios.1", "expected more values, got [0]"),
    ({"mask_ratios": {1: [0, 0.5, 1]}}, "mask_ratios.1", "expected 2 values, got [0, 0.5, 1]"),
    ({"mask_ratios": {1: [0, 0.9]}}, "mask_ratios", "shares end at 0.9, expected 1.0"),
    ({"mask_ratios": {1: [0, 0.5], 2: [0.4, 1]}}, "mask_ratios", "level 2: [0.4, 1.0] overlaps"),
    ({"mask_ratios": {1: [0, 0.5], 2: [0.6, 1]}}, "mask_ratios", "level 2: [0.6, 1.0] leaves a gap"),
    ({"mask_ratios": {2: [0, 0.5], 1: [0.5, 1]}}, "mask_ratios", "level 1: [0.5, 1.0] leaves a gap"),
    ({"mask_ratios": {1: [0, 1.5]}}, "mask_ratios", "expected 0 <= lo <= hi <= 1"),
    ({"mask_ratios": {1: [0, float("nan")]}}, "mask_ratios", "expected 0 <= lo <= hi <= 1"),
    ({"mask_ratios": {3: [0, 1]}}, "mask_ratios", "level 3: expected 0 or a power of two"),
    ({"mask_ratios": {-1: [0, 1]}}, "mask_ratios.-1", "greater than or equal to 0"),
    ({"mask_ratios": {"full": [0, 1]}}, "mask_ratios.full", "expected a valid integer"),
    ({"block_n": 32, "mask_ratios": {64: [0, 1]}}, "mask_ratios", "coarser than a key block"),
    ({"mask_mode": "budget", "budget": 0}, "budget", "greater than 0, got 0"),
    ({"mask_mode": "budget", "budget": 1.5}, "budget", "less than or equal to 1, got 1.5"),
    ({"budget_table": [{"start": 0, "budgets": [0.1]}]}, "budget_table", "with mask_mode 'budget'"),
    ({"mask_mode": "budget", "budget_table": {"start": 0}}, "budget_table", "got {'start': 0}"),
    ({"mask_mode": "budget", "budget_table": [{"start": 0}]}, "budget_table.0.budgets", "this key is required"),
    (
        {"mask_mode": "budget", "budget_table": [{"start": 0, "budgets": []}]},
        "budget_table.0.budgets",
        "expected at least 1 of them, got []",
    ),
    ({"mask_mode": "budget", "budget_table": [{"start": 1, "budgets": [0.1]}]}, "budget_table.0.start", "less than 1"),
    *(
        ({"mask_mode": "budget", "budget_table": [dict(start=s, budgets=b) for s, b in rows]}, "budget_table", words)
        for rows, words in (
            ([(0.1, [0.1])], "start at 0 and then ever later, got [0.1]"),
            ([(0, [0.1]), (0, [0.1])], "got [0.0, 0.0]"),
            ([(0, [0.1]), (0.5, [0.1, 0.2])], "got [1, 2]"),
        )
    ),
    (
        {"mask_mode": "budget", "budget_table": [{"start": 0, "budget": [0.1], "budgets": [0.1]}]},
        "budget_table.0.budget",
        "did you mean 'budgets'?",
    ),
    ({"budget_scope": "rows"}, "budget_scope", "expected 'row', 'head' or 'layer', got 'rows'"),
    ({"use_sim_mask": "perhaps"}, "use_sim_mask", "got 'perhaps'"),
    ({"sim_thresholds": {"x3": 0.5}}, "sim_thresholds.x3", "Known: x2, x4, x8"),
    ({"sim_thresholds": {"x2": 2}}, "sim_thresholds.x2", "less than or equal to 1, got 2"),
    ({"rearrange_method": "gilbert"}, "rearrange_method", "'Gilbert'"),
    ({"tile_size": [2, 8]}, "tile_size", "expected more values, got [2, 8]"),
    ({"tile_size": [2, 8, 0]}, "tile_size.2", "greater than or equal to 1, got 0"),
    ({"attn_impl": "newest"}, "attn_impl", "got 'newest'"),
    ({"attn_impl": "new_mask_type", "use_sim_mask": True}, "attn_impl", "set use_sim_mask: false"),
    ({"attn_impl": "old_mask_type"}, "attn_impl", "set block_size.n: 128"),
    ({"mask_mode": "budget", "use_sim_mask": True}, "use_sim_mask", "set use_sim_mask: false"),
    ({"warmup_steps": -1}, "warmup_steps", "greater than or equal to 0, got -1"),
    ({"description": 5}, "description", "expected a valid string, got 5"),
]


@pytest.mark.parametrize(("settings", "place", "words"), CONFIGS, ids=lambda x: x if isinstance(x, str) else None)
def test_configurations(settings, place, words):
    with pytest.raises(ValidationError) as caught:
        PSAConfig(**settings)
    assert isinstance(caught.value, ValueError)
    check_words(caught.value, f"{place}: ", words)
    with pytest.raises(ValueError) as replaced:
        PSAConfig().replace(**settings)
    check_words(replaced.value, f"{place}: ", words)


def test_assigning_to_a_configuration_says_how_to_change_one():
    with pytest.raises(AttributeError) as caught:
        PSAConfig().block_m = 64
    check_words(caught.value, "block_m: a PSAConfig is frozen; config.replace(block_m=...)")


def test_the_copies_of_pydantic_are_as_good_as_replace():
    config, changed = PSAConfig(), PSAConfig(budget=0.4, mask_mode="budget", importance="sampled")
    copied = config.model_copy(update={"budget": 0.4, "mask_mode": "budget", "importance": "sampled"})
    assert copied == changed and copied.text == changed.text
    assert config.model_copy() == config
    with pytest.raises(ValidationError, match="block_m"):
        config.model_copy(update={"block_m": 7})


def test_equal_configurations_are_one_key():
    shares = {1: (0.0, 0.1), 2: (0.1, 0.3), 0: (0.3, 1.0)}
    turned = dict(reversed(shares.items()))
    assert len({PSAConfig(mask_ratios=shares), PSAConfig(mask_ratios=turned), PSAConfig()}) == 2


@pytest.mark.parametrize(
    ("names", "words"), [((5,), "model: "), (("tiny-wan", 5), "preset: ")], ids=["model", "preset"]
)
def test_names_that_are_none(names, words):
    with pytest.raises(TypeError) as caught:
        load_preset(*names)
    check_words(caught.value, f"{words}expected a name, got int")


SECTION = """\
Mine:
  default_attention: a
  video_scale: {width_divisor: 16, height_divisor: 16, depth_divisor: 4}
  text_length: 0
  attention_configs:
    a: {type: psa}
"""
PRESET_FILES = [
    ("", "", "expected a mapping of model sections, got an empty file"),
    ("# nothing\n", "", "got an empty file"),
    ("just words", "", "expected a mapping of model sections, got str"),
    ("a: [1, 2", "", "text that does not parse"),
    ("a: *nothing", "", "text that does not parse"),
    ("a: !!python/object:os.system {}", "", "text that does not parse"),
    ("[" * 3000, "", "expected YAML"),
    ("a: " + "{b: " * 3000, "", "expected YAML"),
    (b"\xff\xfe\x00a", "", "expected YAML in UTF-8"),
    (b"a: \x00", "", "text that does not parse"),
    ("Mine: 5", "Mine", "expected a mapping, got 5"),
    ("5: {}", "5", "expected a valid string"),
    ("Mine: {}", "Mine.default_attention", "this key is required"),
    (SECTION.replace("  default_attention: a\n", ""), "Mine.default_attention", "this key is required"),
    (SECTION.replace("  text_length: 0\n", ""), "Mine.text_length", "this key is required"),
    (SECTION.replace("text_length: 0", "text_length: -1"), "Mine.text_length", "greater than or equal to 0, got -1"),
    (SECTION.replace("text_length", "text_lenght"), "Mine.text_lenght", "did you mean 'text_length'?"),
    (SECTION.replace("attention: a", "attention: b"), "Mine.default_attention", "unknown preset 'b'"),
    (SECTION.replace("attention: a", "attention: [a]"), "Mine.default_attention", "expected a valid string"),
    (SECTION.replace("width_divisor: 16", "width_divisor: 0"), "Mine.video_scale.width_divisor", "got 0"),
    (SECTION.replace(", depth_divisor: 4", ""), "Mine.video_scale.depth_divisor", "this key is required"),
    (SECTION.replace("    a: {type: psa}\n", ""), "Mine.attention_configs", "expected a mapping, got None"),
    (SECTION.replace("\n    a: {type: psa}", " {}"), "Mine.attention_configs", "expected at least 1 of them"),
    (SECTION.replace("\n    a: {type: psa}", " [a]"), "Mine.attention_configs", "expected a mapping, got ['a']"),
    (SECTION + "    a: {type: dense}\n", "Mine.attention_configs.a", "key given twice"),
    (SECTION + SECTION, "Mine", "key given twice, in lines 1 and 7"),
]
PRESETS = [
    ("5", "", "expected a mapping, got 5"),
    ("null", "", "expected a mapping, got None"),
    ("{}", ".type", "this key is required: psa or dense"),
    ("{type: PSA}", ".type", "expected psa or dense, got 'PSA'"),
    ("{type: [psa]}", ".type", "expected psa or dense, got ['psa']"),
    ("{type: null}", ".type", "expected psa or dense, got None"),
    ("{type: dense, block_size: {m: 64}}", ".block_size", "unknown key"),
    ("{type: psa, blok_size: {m: 64}}", ".blok_size", "did you mean"),
    ("{type: psa, block_n: 64}", ".block_n", "did you mean 'block_size.n'?"),
    ("{type: psa, block_size: 64}", ".block_size", "expected a mapping with m, n and tile_n, got 64"),
    ("{type: psa, block_size: {k: 64}}", ".block_size.k", "unknown key 'block_size.k'"),
    ("{type: psa, mask_ratios: {1: [0, 0.9]}}", ".mask_ratios", "shares end at 0.9"),
    ("{type: psa, mask_ratios: {1: 0..1}}", ".mask_ratios.1", "expected a list, got '0..1'"),
    ("{type: psa, sim_thresholds: {x16: 0.5}}", ".sim_thresholds.x16", "Known: x2, x4, x8"),
    ("{type: psa, attn_impl: old_mask_type}", ".attn_impl", "set block_size.n: 128"),
    ("{type: psa, description: {en: words}}", ".description", "expected a valid string"),
    ("{type: psa, block_size: {m: 64}, block_size.m: 32}", ".block_size", "each size once, got block_size.m beside it"),
    ("{type: psa, mask_ratios: {1: [0, 0.1], 01: [0, 1]}}", ".mask_ratios.01", "key given twice"),
    ("{type: psa, mask_ratios: {1: [0, 0.1], '1': [0, 1]}}", ".mask_ratios", "expected each level once, got 1, '1'"),
    (
        "{type: psa, reuse: {keep: fp8}}",
        ".reuse",
        "expected one of refresh_every, refresh_steps and max_error, got none",
    ),
    ("{type: psa, reuse: {refresh_every: 2, layer_groups: 5}}", ".reuse.layer_groups", "at most refresh_every"),
]
PRESET_FILES += [
    (SECTION.replace("{type: psa}", preset), f"Mine.attention_configs.a{place}", words)
    for preset, place, words in PRESETS
]


def test_a_message_is_no_longer_than_a_page(tmp_path):
    """Whatever aliases of aliases hold."""
    nested = [f"{name}: &{name} [{', '.join(['*' + last] * 9)}]" for last, name in pairwise("abcdefgh")]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *nested, ""]))
    with pytest.raises(PresetError) as caught:
        load_presets_file(file)
    assert len(str(caught.value)) < 50_000


@pytest.mark.parametrize(("content", "place", "words"), PRESET_FILES, ids=range(len(PRESET_FILES)))
def test_presets_files(content, place, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PresetError) as caught:
        load_presets_file(file)
    check_words(caught.value, f"{file}: ", f"{place}: " if place else "", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected at least one prompt"),
        (b"\n \n\t\n", "expected at least one prompt"),
        (b"# a\n# b\n", "expected at least one prompt"),
        (b"\xef\xbb\xbf", "expected at least one prompt"),
        ("a red ring".encode("utf-16"), "expected UTF-8 text"),
        ("a ring in Zürich".encode("latin-1"), "at byte 11; save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "expected UTF-8 text"),
        (b"a\x00b", "bytes of value 0"),
        ("a red ring".encode("utf-16-le"), "bytes of value 0"),
        ("folder", "expected a file, got the folder"),
        (None, "there is no file"),
    ],
    ids=["empty", "blank", "comments", "mark", "utf-16", "latin-1", "png", "zero", "utf-16-le", "folder", "missing"],
)
def test_prompt_files(content, words, tmp_path):
    file = tmp_path / "prompts.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "folder":
        file.mkdir()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_prompts_file(file)
    check_words(caught.value, "prompt_file: ", str(file), words)


SIDECARS = [
    *(b"", b" ", b"no JSON", b"{", b'{"settings": {}', b'{"settings": {}}{}', b"\xff\xfe{}", b"\x00", b"[" * 100_000),
    *(b"null", b"5", b'"words"', b"[]", b'["settings"]', b"{}", b'{"setting": {}}', b'{"settings": null}'),
    *(b'{"settings": 3}', b'{"settings": []}', b'{"settings": "x"}', b'{"settings": [["prompt", "x"]]}'),
]
REQUEST = VideoRequest(
    prompt="x", seed=1, width=32, height=32, num_frames=5, num_inference_steps=1, guidance_scale=1, fps=8
)


@pytest.mark.parametrize("content", SIDECARS, ids=range(len(SIDECARS)))
@pytest.mark.parametrize("kind", ["video", "comparison"])
def test_sidecars(kind, content, tmp_path):
    file = tmp_path / ("video_0000.json" if kind == "video" else "case.json")
    file.write_bytes(content)
    (tmp_path / "video_0000.mp4").write_bytes(b"video")
    with pytest.raises(ValueError) as caught:
        if kind == "video":
            plan_jobs(tmp_path, [REQUEST], [{"prompt": "x"}])
        else:
            read_finished(Case("", tmp_path, REQUEST, {"prompt": "x"}))
    check_words(caught.value, f"{file}: expected the sidecar of a video, got ", "move it away or give --overwrite")


@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"missing": []},
        {"missing": [], "dense": {}},
        {"missing": [], "dense": 5, "ceiling": None, "candidates": []},
        {"missing": [], "dense": {"cost": {}}, "ceiling": None, "candidates": []},
        {"missing": [], "dense": {"cost": {}}, "ceiling": None, "candidates": [{"label": "psa"}]},
    ],
    ids=range(6),
)
def test_numbers_of_a_comparison(rest, tmp_path):
    (tmp_path / "case.json").write_text(json.dumps({"settings": {"prompt": "x"}, **rest}))
    with pytest.raises(ValueError) as caught:
        read_finished(Case("", tmp_path, REQUEST, {"prompt": "x"}))
    check_words(caught.value, f"{tmp_path / 'case.json'}: ", "expected the numbers of a finished case", "--overwrite")


def header(entries, data=b""):
    """A safetensors file of this header."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


LAYER = "transformer.blocks.0.attn1.to_q"
A, B = torch.ones(2, 64), torch.ones(64, 2)
WHOLE = save({f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B})
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LORAS = {
    "empty": (b"", "damaged or no safetensors file"),
    "cut in the header": (WHOLE[:50], "damaged or no safetensors file"),
    "too long": (WHOLE + b"more", "damaged or no safetensors file"),
    "a header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "damaged or no safetensors file"),
    "a header that is a list": (struct.pack("<Q", 2) + b"[]", "damaged or no safetensors file"),
    "a place outside": (header({"lora": ENTRY | {"data_offsets": [0, 80]}}, bytes(8)), "damaged or no safetensors"),
    "no weights": ({}, "expected LoRA weights, got none"),
    "a whole layer": ({f"{LAYER}.weight": torch.ones(64, 64)}, f"expected LoRA weights, got others ({LAYER}.weight)"),
    "half a pair, A": ({f"{LAYER}.lora_A.weight": A}, f"expected {LAYER}.lora_B.weight beside"),
    "half a pair, down": ({"lora_unet_q.lora_down.weight": A}, "expected lora_unet_q.lora_up.weight beside"),
    "half a pair, old": ({f"{LAYER}.lora.up.weight": B}, f"expected {LAYER}.lora.down.weight beside"),
    "two ranks": (
        {f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": B},
        "expected shapes [rank, in] and [out, rank], got [4, 64] and [64, 2]",
    ),
    "vectors": (
        {f"{LAYER}.lora_A.weight": torch.ones(64), f"{LAYER}.lora_B.weight": torch.ones(64)},
        "got [64] and [64]",
    ),
    "integers": ({f"{LAYER}.lora_A.weight": A.int(), f"{LAYER}.lora_B.weight": B}, "finite numbers"),
    "NaN": ({f"{LAYER}.lora_A.weight": A * torch.nan, f"{LAYER}.lora_B.weight": B}, "got NaN or infinity"),
    "infinity": ({f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B / 0}, "got NaN or infinity"),
}


@pytest.mark.parametrize("name", LORAS)
def test_lora_files(name, tmp_path):
    content, words = LORAS[name]
    file = tmp_path / "lora.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    with pytest.raises(ValueError) as caught:
        find_lora(str(file))
    check_words(caught.value, "lora_path: ", str(file), words)


@pytest.mark.parametrize(
    ("files", "asked", "words"),
    [
        ([], "nothing.safetensors", "there is no file or folder"),
        ([], ".", "there is no safetensors file in"),
        (["a.bin"], "a.bin", "expected a .safetensors file"),
        (["a.pt"], ".", "there is no safetensors file in"),
        (["a.safetensors", "b.safetensors"], ".", "expected one file in"),
        (["x/pytorch_lora_weights.safetensors", "y/pytorch_lora_weights.safetensors"], ".", "name the file"),
    ],
    ids=["no file", "empty folder", "other format", "no such format", "two files", "two folders"],
)
def test_lora_paths(files, asked, words, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WHOLE)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        find_lora(str(tmp_path / asked))
    check_words(caught.value, "lora_path: ", str(tmp_path), words)


@pytest.mark.parametrize(
    ("layer", "size", "words"),
    [
        ("transformer.blocks.0.attn1.to_q", 48, "does not fit the transformer"),
        ("transformer.blocks.9.attn1.to_q", 64, "not found in the base model"),
        ("transformer.nowhere", 64, "not found in the base model"),
    ],
    ids=["another size", "no such block", "no such layer"],
)
def test_loras_of_other_models(layer, size, words, pipeline_folder, tmp_path):
    from diffusers import WanPipeline

    file = tmp_path / "lora.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, size), f"{layer}.lora_B.weight": torch.ones(size, 2)}, file)
    lora, pipe = find_lora(str(file)), WanPipeline.from_pretrained(pipeline_folder)
    with pytest.raises(ValueError) as caught:
        load_lora(pipe, lora)
    check_words(caught.value, "lora_path: ", str(file), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no "),
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "expected a mapping in"),
        (b"{}", "names the pipeline None"),
        (b'{"_class_name": "WanPipeline"}', "there is no "),
        (b'{"_class_name": 5}', "names the pipeline 5"),
        (b'{"_class_name": "WanPipelin"}', "names the pipeline 'WanPipelin'"),
    ],
    ids=["missing", "empty", "cut", "bytes", "list", "nothing", "no transformer", "number", "unknown"],
)
def test_model_folders(content, words, tmp_path):
    if content is not None:
        (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        find_source(str(tmp_path))
    check_words(caught.value, "model: ", str(tmp_path), words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"grid": "8,12"}, "grid: expected FRAMES,HEIGHT,WIDTH"),
        ({"grid": "8x12x12"}, "grid: expected FRAMES,HEIGHT,WIDTH"),
        ({"grid": "8,-1,12"}, "grid: expected FRAMES,HEIGHT,WIDTH"),
        ({"grid": "0,0,0"}, "grid"),
        ({"grid": "2,2,2", "prefix_tokens": "some"}, "qkv: expected a count as prefix_tokens"),
        ({"grid": "2,2,2", "prefix_tokens": "-4"}, "qkv: expected a count as prefix_tokens"),
        ({"grid": "2,2,2", "prefix_tokens": "99"}, "prefix_tokens: expected 0 to 8"),
    ],
    ids=range(7),
)
def test_headers_of_saved_tensors(metadata, words, tmp_path):
    save_file({name: torch.zeros(1, 1, 8, 16) for name in "qkv"}, tmp_path / "qkv.safetensors", metadata=metadata)
    with pytest.raises(ValueError) as caught:
        read_qkv(tmp_path / "qkv.safetensors", torch.device("cpu")).inputs()
    check_words(caught.value, words)
