import re
from pathlib import Path

import pytest
from command_line import psa

from psa_triton.models import MODELS
from psa_triton.tools.cli.models import markdown

PAGE = Path(__file__).parents[3] / "docs" / "families.md"


def test_the_page_names_every_model_beside_its_class():
    lines = re.findall(r"^\* `(\w+)`[^:\n]*: (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = {key: family for family, keys in lines for key in keys.split(", ")}
    assert shown == {key: spec.transformer["_class_name"].removeprefix("Frame") for key, spec in MODELS.items()}


def test_markdown_has_all_columns():
    lines = psa("models", "--markdown").output.splitlines()
    assert lines == markdown()
    assert lines[0] == "| model | transformer | default size | tokens | steps | presets of | default |"


def test_tokens_at_the_default_size():
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in markdown()}
    assert "| 832x480" not in lines["wan21_14b"] and "64,800" in lines["wan21_14b"]  # 18 x 45 x 80
    assert "4,096" in lines["flux.1-dev"]
    assert "7,392" not in lines["minimax_h3"] and set(MODELS) < set(lines)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_shows_every_key_and_number_whole(columns):
    table = psa("models", columns=columns).output
    assert all(f"{key} " in table for key in MODELS) and "17,550" in table and "…" not in table
    assert max(map(len, table.splitlines())) <= 80
