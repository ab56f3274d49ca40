"""A preset added to a file that people wrote: all else stays as it was, letter by letter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from psa_triton.config import PSAConfig
from psa_triton.presets import PresetError, load_preset, load_presets_file, shipped_presets
from psa_triton.tools.tuning import check_output, file_with_preset, write_presets

MINE = """\
# My presets.
Wan2.1_1.3b:   # the small one
  default_attention: mine
  video_scale: {width_divisor: 16, height_divisor: 16, depth_divisor: 4}
  text_length: 0
  attention_configs:
      mine:
          type: psa   # as in the paper
          description: "A # in quotes."
          mask_ratios:
              1: [0.0, 0.4]
              0: [0.4, 1.0]

# The end of my presets.
"""
TUNED = PSAConfig(
    description="Ein Test: ça va?",
    block_m=64,
    block_n=32,
    mask_mode="budget",
    budget=0.2,
    budget_table=[{"start": 0, "budgets": [0.1, 0.2]}, {"start": 0.5, "budgets": [0.3, 1.0]}],
    importance="representative",
    warmup_steps=2,
)
SECTION = "Wan2.1_1.3b"


def put(file: Path, config: PSAConfig = TUNED, section: str = SECTION, name: str = "tuned") -> str:
    text = file_with_preset(file, section, name, config, base=shipped_presets())
    write_presets(file, text, section, name, config)
    return file.read_bytes().decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_new_file_holds_the_model_s_section_and_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    put(path)
    sections = load_presets_file(path).sections
    shipped = load_presets_file().section(SECTION)
    assert list(sections) == [SECTION]
    assert list(sections[SECTION].attention_configs) == [*shipped.attention_configs, "tuned"]
    assert load_preset(SECTION, "psa_topk", path) == load_preset(SECTION, "psa_topk")
    assert load_preset(SECTION, "tuned", path) == TUNED
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_added_and_none_is_changed(file: Path) -> None:
    text = put(file)
    assert load_preset(SECTION, "tuned", file) == TUNED
    head, tail = MINE.split("\n\n")
    assert text.startswith(f"{head}\n      tuned:\n")
    assert text.endswith(f"\n\n{tail}")
    assert "budgets: [0.3, 1.0]" in text


def test_again_gives_the_same_file_and_other_numbers_replace_the_preset(file: Path) -> None:
    first = put(file)
    assert put(file) == first
    other = TUNED.replace(budget=0.3)
    changed = put(file, other)
    assert load_preset(SECTION, "tuned", file) == other
    assert changed == first.replace("budget: 0.2\n", "budget: 0.3\n")


def test_a_section_that_is_not_there_is_copied_to_the_end(file: Path) -> None:
    text = put(file, section="tiny-wan")
    assert text.startswith(MINE)
    assert load_preset("tiny-wan", "tuned", file) == TUNED
    assert load_preset("tiny-wan", "psa_balanced", file) == load_preset("tiny-wan", "psa_balanced")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(MINE.replace("\n", "\r\n"), id="windows-line-ends"),
        pytest.param(MINE.rstrip().rpartition("\n\n")[0], id="no-end-of-line-at-the-end"),
        pytest.param(MINE.replace('"A # in quotes."', "|\n            Two\n            lines.\n"), id="block-text"),
        pytest.param(MINE.replace("[0.4, 1.0]\n", "[0.4, 1.0] # the rest\n"), id="comment-on-the-last-line"),
    ],
)
def test_ways_to_write_a_file(text: str, file: Path) -> None:
    file.write_bytes(text.encode())
    before = load_preset(SECTION, "mine", file)
    first = put(file)
    assert first.startswith(text.partition("0: [")[0])
    assert put(file) == first
    assert load_preset(SECTION, "mine", file) == before
    assert load_preset(SECTION, "tuned", file) == TUNED
    assert ("\r\n" in text) == (first.count("\r\n") == first.count("\n"))


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        pytest.param(MINE, "mine", "has comments, which would be lost", id="comments-inside"),
        pytest.param(
            f"{SECTION}:\n  default_attention: x\n  text_length: 0\n"
            "  video_scale: {width_divisor: 16, height_divisor: 16, depth_divisor: 4}\n"
            "  attention_configs: {x: {type: dense}}\n",
            "tuned",
            "got braces or an alias",
            id="braces",
        ),
        pytest.param(MINE.replace("default_attention: mine", "default_attention: me"), "tuned", "me", id="mistakes"),
    ],
)
def test_files_that_cannot_be_added_to_stay_as_they_are(file: Path, text: str, name: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        put(file, name=name)
    assert file.read_text(encoding="utf-8") == text
    assert list(file.parent.iterdir()) == [file]


def test_a_preset_written_as_an_alias_does_not_lead_astray(file: Path) -> None:
    text = MINE.replace("      mine:\n", "      other: &it {type: dense}\n      mine:\n")
    text = text.replace("0: [0.4, 1.0]\n", "0: [0.4, 1.0]\n      last: *it\n")
    file.write_text(text, encoding="utf-8")
    first = put(file)
    assert put(file) == first
    assert load_preset(SECTION, "tuned", file) == TUNED
    assert first.replace(first[first.index("      tuned:") : first.index("      mine:")], "") == text


def test_the_shipped_file_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes with the library and is never written"):
        check_output(shipped_presets())
    link = tmp_path / "link.yaml"
    link.symlink_to(shipped_presets())
    with pytest.raises(ValueError, match="never written"):
        check_output(link)
    check_output(Path(shutil.copy(shipped_presets(), tmp_path / "copy.yaml")))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_output(tmp_path / "missing" / "mine.yaml")


def test_a_broken_file_is_told_of_before_anything_else(file: Path) -> None:
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(PresetError, match="expected YAML"):
        file_with_preset(file, SECTION, "tuned", TUNED, base=shipped_presets())
