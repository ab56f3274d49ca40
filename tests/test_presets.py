import json
from pathlib import Path
from textwrap import dedent

import jsonschema
import pydantic
import pytest
import yaml
from packaging.version import Version

from psa_triton.config import BudgetRow, PSAConfig
from psa_triton.models import MODELS
from psa_triton.presets import (
    DENSE,
    PresetError,
    load_preset,
    load_presets_file,
    presets_json_schema,
    resolve,
    shipped_presets,
)
from psa_triton.tools.cli.explain import density_bounds, explain

CONFIGS = Path(__file__).parents[1] / "configs"

# section: (width, height, depth divisor, text length)
SECTIONS = {
    "Wan2.1_14b": (16, 16, 4, 0),
    "Wan2.1_1.3b": (16, 16, 4, 0),
    "Wan2.2_A14B": (16, 16, 4, 0),
    "Wan2.2_5B": (32, 32, 4, 0),
    "CogVideo1.5_5b": (16, 16, 8, 226),
    "CogVideo_5b": (16, 16, 4, 226),
    "general": (16, 16, 4, 0),
    "tiny-wan": (8, 8, 4, 0),
    "Qwen2.5-VL": (28, 28, 2, 0),
}
# Few steps, or (FramePack) the same steps for each section of a video.
NOT_REUSING = {"general", "Qwen2.5-VL", "Wan2.2_Animate", "FramePack", "image", "image_turbo"}
ALL_SECTIONS = load_presets_file().sections
# (m, n, mode, where levels 1, 2, 4, 8 end, *_mask_type, use_rearrange, use_sim_mask, warmup_steps, sim_thresholds.x8)
PRESETS = {
    ("Wan2.1_14b", "psa_balanced"): (128, 128, "thresholdbound", (0.4, 0.5, 0.6, 0.8), "new", True, False, 15, 0.6),
    ("Wan2.1_1.3b", "psa_balanced"): (128, 128, "thresholdbound", (0.5, 0.6, 0.7, 0.8), "old", True, True, 15, 0.6),
    ("Wan2.1_1.3b", "psa_topk"): (128, 32, "topk", (0.05, 0.1, 0.15, 0.25), "new", True, False, 15, 0.65),
    ("Wan2.2_A14B", "psa_balanced"): (128, 32, "thresholdbound", (0.5, 0.6, 0.6, 0.8), "new", True, False, 12, 0.6),
    ("Wan2.2_5B", "psa_balanced"): (128, 32, "thresholdbound", (0.6, 0.7, 0.7, 0.8), "new", True, False, 15, 0.6),
    ("CogVideo1.5_5b", "psa_balanced"): (128, 32, "topk", (0.1, 0.15, 0.15, 0.35), "new", True, False, 15, 0.6),
    ("CogVideo_5b", "psa_balanced"): (128, 128, "topk", (0.1, 0.15, 0.15, 0.35), "new", False, False, 15, 0.6),
    ("general", "psa_balanced"): (128, 64, "thresholdbound", (0.7, 0.8, 0.9, 0.9), "new", True, False, 10, 0.6),
    ("CogVideo_5b", "psa_4steps"): (128, 128, "topk", (0.05, 0.15, 0.25, 0.5), "old", False, False, 0, 0.6),
}
# The preset that the configuration guide gives as an example: no level 8, several keys left out.
EXAMPLE_PRESET = """
      type: psa
      description: "My custom PSA configuration"
      use_rearrange: true
      block_size:
        m: 128
        n: 64
        tile_n: 32
      mask_ratios:
        1: [0.0, 0.5]
        2: [0.5, 0.7]
        4: [0.7, 0.9]
        0: [0.9, 1.0]
      mask_mode: thresholdbound
      warmup_steps: 10
"""


def write(folder, text):
    file = folder / "presets.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def section_with(preset, *, default="mine"):
    """A file with the one section `Model` and the one preset `mine`, given as a flow mapping."""
    return dedent(f"""\
        Model:
          default_attention: {default}
          video_scale: {{width_divisor: 16, height_divisor: 16, depth_divisor: 4}}
          text_length: 0
          attention_configs:
            mine: {preset}
        """)


def mistakes(folder, text):
    with pytest.raises(PresetError) as caught:
        load_presets_file(write(folder, text))
    assert caught.value.path == folder / "presets.yaml"
    assert str(caught.value.path) in str(caught.value)
    return caught.value.mistakes


class TestShippedFile:
    def test_has_these_sections(self):
        described = {name: (*x.video_scale.model_dump().values(), x.text_length) for name, x in ALL_SECTIONS.items()}
        assert described.items() >= SECTIONS.items()

    @pytest.mark.parametrize("model", sorted(ALL_SECTIONS.keys() - SECTIONS))
    def test_a_model_never_run_takes_the_balanced_preset_of_one_that_was(self, model):
        taken = load_preset(model, "psa_balanced").replace(description="")
        assert taken in [
            load_preset(name).replace(description="", warmup_steps=taken.warmup_steps) for name in SECTIONS
        ]

    @pytest.mark.parametrize("model", ALL_SECTIONS)
    def test_every_section_has_a_dense_baseline_and_a_default_for_its_model(self, model):
        usual = load_presets_file().section(model).default_attention
        assert usual == ("psa_refresh" if model == "tiny-wan" else "psa_balanced")
        assert load_preset(model, "baseline") is None
        assert isinstance(load_preset(model), PSAConfig)
        assert load_preset(model) == load_preset(model, usual)

    @pytest.mark.parametrize(("model", "preset"), PRESETS, ids="/".join)
    def test_preset_values(self, model, preset):
        m, n, mode, (one, two, four, eight), impl, rearrange, sim_mask, warmup, x8 = PRESETS[model, preset]
        ratios = {1: (0, one), 2: (one, two), 4: (two, four), 8: (four, eight), 0: (eight, 1)}
        config = load_preset(model, preset)
        assert config.description
        assert config.replace(description="") == PSAConfig(
            block_m=m,
            block_n=n,
            tile_n=32,
            mask_ratios=ratios,
            mask_mode=mode,
            attn_impl=f"{impl}_mask_type",
            use_rearrange=rearrange,
            rearrange_method="Gilbert",
            tile_size=(2, 8, 8),
            use_sim_mask=sim_mask,
            sim_thresholds={"x2": 0.7, "x4": 0.65, "x8": x8},
            warmup_steps=warmup,
        )

    def test_understanding_is_causal_with_antidiagonal_importance(self):
        config = load_preset("Qwen2.5-VL", "psa_balanced")
        assert config.replace(description="") == PSAConfig(
            block_m=128,
            block_n=128,
            mask_ratios={1: (0, 0.7), 2: (0.7, 0.8), 4: (0.8, 0.9), 8: (0.9, 0.9), 0: (0.9, 1)},
            mask_mode="thresholdbound",
            importance="antidiagonal",
            keep_first_block=True,
            use_rearrange=False,
            use_sim_mask=True,
            sim_thresholds={"x2": 0.75, "x4": 0.7, "x8": 0.7},
        )

    def test_text_looks_at_half_of_the_keys_and_drops_none(self):
        config = load_preset("Qwen2.5-VL", "psa_text")
        assert config.replace(description="") == PSAConfig(
            mask_ratios={1: (0, 0.96), 64: (0.96, 1)},
            mask_mode="thresholdbound",
            importance="finely_sampled",
            keep_first_block=True,
            use_rearrange=False,
        )

    @pytest.mark.parametrize("model", ALL_SECTIONS)
    def test_every_section_has_a_budget_with_the_warm_up_of_its_balanced_preset(self, model):
        config, default = load_preset(model, "psa_budget"), load_preset(model, "psa_balanced")
        assert default is not None
        understands = model == "Qwen2.5-VL"
        small = model == "tiny-wan"  # with one layer in four dense
        assert config.replace(description="") == PSAConfig(
            block_m=32 if small else 128,
            block_n=32 if small else 64,
            mask_mode="budget",
            budget=0.35 if understands else 0.15,
            budget_table=(BudgetRow(start=0, budgets=(1, 0.15, 0.15, 0.15)),) if small else (),
            budget_scope="layer" if understands else "row",
            importance="sampled" if understands else "representative",
            use_rearrange=not understands,
            keep_first_block=understands,
            warmup_steps=default.warmup_steps,
        )

    @pytest.mark.parametrize("model", sorted(ALL_SECTIONS.keys() - NOT_REUSING))
    def test_every_video_model_has_a_budget_with_reuse_instead_of_warm_up(self, model):
        config, budget = load_preset(model, "psa_refresh"), load_preset(model, "psa_budget")
        assert config.reuse is not None
        few_steps = model == "tiny-wan"  # 24; the others have about 50
        rhythm = {"refresh_every": 8, "layer_groups": 4, "sparse_every": 4 if few_steps else 2}
        expected = budget.replace(block_m=128, block_n=64, budget_table=(), warmup_steps=0, probe=0.01)
        kept = {"keep": config.reuse.keep, "keep_on": config.reuse.keep_on}
        assert config.replace(description="") == expected.replace(description="", reuse={**rhythm, **kept})

    def test_runs_of_few_steps_reuse_nothing(self):
        assert {model for model, x in ALL_SECTIONS.items() if "psa_refresh" not in x.attention_configs} == NOT_REUSING

    def test_is_the_one_that_people_edit(self):
        assert shipped_presets().samefile(CONFIGS / "attention_config.yaml")


class TestJsonSchema:
    @pytest.mark.skipif(Version(pydantic.VERSION) < Version("2.10"), reason="older ones write the same in other words")
    def test_committed_schema_is_up_to_date(self):
        committed = json.loads((CONFIGS / "attention_config.schema.json").read_text(encoding="utf-8"))
        assert committed == presets_json_schema(), "run `make schema`"

    def test_accepts_the_shipped_file(self):
        jsonschema.validate(self.shipped(), presets_json_schema())

    @pytest.mark.parametrize(
        ("key", "value"),
        [("mask_ratio", {}), ("block_m", 128), ("block_size", {"k": 1}), ("mask_mode", "top")],
        ids=["unknown-key", "flat-block-size", "unknown-block-size", "unknown-mode"],
    )
    def test_refuses_what_the_library_refuses(self, key, value):
        data = self.shipped()
        data["tiny-wan"]["attention_configs"]["psa_balanced"][key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, presets_json_schema())

    @staticmethod
    def shipped():
        """The shipped file as JSON has it: keys are strings."""
        return json.loads(json.dumps(yaml.safe_load(shipped_presets().read_text(encoding="utf-8"))))


class TestCustomPreset:
    def test_example_alone_adds_to_the_shipped_section(self, tmp_path):
        """As the configuration guide prints it: neither a default nor what is said of the model."""
        example = f"CogVideo_5b:\n  attention_configs:\n    my_custom_preset:{EXAMPLE_PRESET}"
        file = load_presets_file(write(tmp_path, example))
        shipped = load_presets_file().section("CogVideo_5b")
        section = file.section("CogVideo_5b")
        assert [*section.attention_configs] == [*shipped.attention_configs, "my_custom_preset"]
        assert (section.video_scale, section.default_attention) == (shipped.video_scale, shipped.default_attention)
        mine = load_preset("cogvideo_5b", "my_custom_preset", file.path)
        assert mine is not None and mine.mask_ratios[4] == (0.7, 0.9)
        changed = write(tmp_path, example.replace("my_custom_preset", "psa_balanced"))
        assert load_preset("CogVideo_5b", path=changed) == mine, "a preset of the same name takes its place"
        whole = f"CogVideo_5b:\n  default_attention: mine\n  attention_configs:\n    mine:{EXAMPLE_PRESET}"
        (mistake, *_) = mistakes(tmp_path, whole)
        assert mistake == "CogVideo_5b.video_scale: this key is required", "one with a default stands alone"

    def test_keys_left_out_get_the_defaults_of_the_operator(self, tmp_path):
        assert load_preset("Model", path=write(tmp_path, section_with("{type: psa}"))) == PSAConfig()

    def test_a_budget_brings_the_estimate_that_suits_it(self, tmp_path):
        for given, expected in (("", "representative"), (", importance: pooled", "pooled")):
            config = load_preset(
                "Model", path=write(tmp_path, section_with(f"{{type: psa, mask_mode: budget{given}}}"))
            )
            assert config.importance == expected

    def test_order_of_keys_does_not_matter(self, tmp_path):
        file = write(tmp_path, section_with("{mask_ratios: {0: [0.5, 1], 1: [0, 0.5]}, type: psa}"))
        config = load_preset("Model", path=str(file))
        assert list(config.mask_ratios.items()) == [(1, (0, 0.5)), (0, (0.5, 1))]


@pytest.mark.parametrize(
    ("key", "section", "preset"),
    [
        *((spec.key, spec.preset_section, spec.preset) for spec in MODELS.values()),
        ("qwen2.5-vl-7b", "Qwen2.5-VL", None),
    ],
)
def test_a_model_goes_by_its_key_as_well(key, section, preset):
    assert load_preset(key) == load_preset(section, preset)
    assert load_preset(key, "psa_budget") == load_preset(section, "psa_budget")


class TestResolve:
    """The one way from a name to a configuration."""

    @pytest.mark.parametrize(
        ("name", "section", "expected"),
        [
            (None, "Wan2.1_1.3b", "Wan2.1_1.3b/psa_balanced"),
            (None, "cogvideo_5b_lora", "CogVideo_5b/psa_4steps"),
            ("psa_topk", "wan21_1.3b", "Wan2.1_1.3b/psa_topk"),
            ("wan21_1.3b/psa_topk", "Wan2.1_14b", "Wan2.1_1.3b/psa_topk"),
            ("tiny-wan/psa_budget", None, "tiny-wan/psa_budget"),
            ("baseline", "tiny-wan", "tiny-wan/baseline"),
        ],
    )
    def test_finds(self, name, section, expected):
        found = resolve(name, section)
        assert found.name == expected
        assert found.config == load_preset(*expected.split("/"))
        own = section is not None and not (name or "").startswith("wan21")
        assert (found.video_scale is not None) == own, "a borrowed preset says nothing of the model"

    @pytest.mark.parametrize("section", [None, "tiny-wan", "no section"])
    def test_dense_belongs_to_no_section(self, section):
        assert resolve("dense", section) == DENSE
        assert DENSE.config is None

    @pytest.mark.parametrize("name", [None, "psa_balanced"])
    def test_an_unknown_model_needs_a_section(self, name):
        with pytest.raises(ValueError, match="name: expected SECTION/PRESET"):
            resolve(name)

    @pytest.mark.parametrize("name", ["", "tiny-wan/"])
    def test_an_empty_name_is_no_default(self, name):
        with pytest.raises(PresetError, match="unknown preset ''"):
            resolve(name, "tiny-wan")

    def test_a_file_is_read_again_once_it_has_changed(self, tmp_path):
        file = write(tmp_path, section_with("{type: psa, warmup_steps: 1}"))
        first = load_presets_file(file)
        assert load_presets_file(str(file)) is first
        write(tmp_path, section_with("{type: psa, warmup_steps: 12}"))
        found = resolve(None, "Model", file).config
        assert found is not None and found.warmup_steps == 12


class TestMistakes:
    def test_all_mistakes_of_a_file_are_told(self, tmp_path):
        text = section_with("{type: psa, warmup_steps: -1, verbos: true}", default="other")
        found = mistakes(tmp_path, text.replace("width_divisor: 16", "width_divisor: 0") + "Second: 5\n")
        assert [mistake.partition(": ")[0] for mistake in found] == [
            "Model.video_scale.width_divisor",
            "Model.attention_configs.mine.warmup_steps",
            "Model.attention_configs.mine.verbos",
            "Second",
            "Model.default_attention",
        ]

    @pytest.mark.parametrize("name", ["a/b", "dense", ""])
    def test_a_name_that_could_not_be_asked_for(self, tmp_path, name):
        (found,) = mistakes(tmp_path, section_with("{type: psa}").replace("mine", f'"{name}"'))
        assert found == f"Model.attention_configs.{name}: expected a name without /, and other than dense, got {name!r}"

    def test_anchor_that_holds_itself(self, tmp_path):
        assert "Model.again: unknown key 'again'" in mistakes(tmp_path, "Model: &model\n  again: *model\n")[-1]

    @pytest.mark.parametrize(("name", "reason"), [("none.yaml", "No such file"), ("", "directory")])
    def test_file_that_cannot_be_read(self, tmp_path, name, reason):
        with pytest.raises(PresetError, match=f"cannot be read .*{reason}"):
            load_presets_file(tmp_path / name)


BY_LAYER_AND_STEP = PSAConfig(
    mask_mode="budget",
    budget=0.3,
    budget_table=[{"start": 0, "budgets": [0.1, 0.2]}, {"start": 0.75, "budgets": [0.2, 1.0]}],
)


class TestDensityBounds:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            # 0.10 + 0.05 / 2 + 0.20 / 8
            (PSAConfig(), (0.15, 0.15)),
            # Kept blocks may all end up at level 1.
            (PSAConfig(use_sim_mask=True), (0.15, 0.35)),
            # One block holds everything: 0.06. All alike: 0.4 + 0.1 / 2 + 0.1 / 4 + 0.2 / 8.
            (load_preset("Wan2.1_14b"), (0.06, 0.5)),
            # No level 0: what is not full costs 1/8 at least.
            (
                PSAConfig(mask_mode="thresholdbound", min_full_ratio=0.2, mask_ratios={1: (0, 0.5), 8: (0.5, 1)}),
                (0.2 + 0.8 / 8, 0.5 + 0.5 / 8),
            ),
            # More blocks are full anyway than the shares ask for.
            (
                PSAConfig(mask_mode="thresholdbound", min_full_ratio=0.5, mask_ratios={1: (0, 0.2), 2: (0.2, 1)}),
                (0.75, 0.75),
            ),
            (PSAConfig(mask_ratios={1: (0, 1)}), (1.0, 1.0)),
            (PSAConfig(mask_mode="budget", budget=0.2), (0.0, 0.2)),
            (BY_LAYER_AND_STEP, (0.0, 0.75 * 0.15 + 0.25 * 0.6)),
        ],
        ids=["topk", "topk-cap", "thresholdbound", "nothing-skipped", "min-full", "all-full", "budget", "table"],
    )
    def test_by_hand(self, config, expected):
        assert density_bounds(config) == pytest.approx(expected)


class TestExplain:
    def test_topk(self):
        assert [*explain(PSAConfig(use_rearrange=False))] == [
            "Density: 15.0%",
            "use_rearrange: False",
            "    Put visual tokens along `rearrange_method` before blocking, where their grid is known.",
        ]

    def test_budget(self):
        density, *settings = explain(PSAConfig(mask_mode="budget", budget=0.2))
        assert density == "Density: up to 20.0%"
        assert "budget: 0.2" in settings

    def test_budget_table(self):
        density, *settings = explain(BY_LAYER_AND_STEP)
        assert density == "Density: up to 26.2%"
        assert "  start=0.75 budgets=(0.2, 1.0)" in settings

    def test_thresholdbound_tells_the_range(self):
        config = load_preset("Wan2.1_1.3b")
        density, *settings = explain(config)
        assert density == "Density: 6.0% to 80.0%"
        assert "warmup_steps: 15" in settings

    def test_a_group_of_settings_is_told_one_by_one(self):
        *_, name, x4, meaning = explain(PSAConfig(use_sim_mask=True, sim_thresholds={"x4": 0.5}))
        assert [name, x4, meaning] == [
            "sim_thresholds: Similarity from which on a block may be pooled.",
            "  x4: 0.5",
            "      For level 4: tokens three apart.",
        ]
