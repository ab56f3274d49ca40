import json
import re

import pytest
from command_line import psa

import psa_triton
from psa_triton.presets import load_presets_file, presets_json_schema, shipped_presets


def words(text):
    """Text without its line breaks and frames, which depend on the terminal."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


class TestList:
    def test_shows_every_model_and_preset(self):
        result = psa("presets", "list")
        assert result.exit_code == 0
        for model, section in load_presets_file().sections.items():
            assert model in result.stdout
            assert all(preset in result.stdout for preset in section.attention_configs)

    def test_marks_the_default_and_tells_the_density(self):
        rows = [words(line).split() for line in psa("presets", "list").stdout.splitlines()]
        assert ["psa_balanced", "*", "6.0%", "to", "80.0%"] in [row[:5] for row in rows]
        assert ["psa_topk", "10.0%"] in [row[:2] for row in rows]
        assert ["psa_4steps", "15.6%"] in [row[:2] for row in rows]

    def test_reads_another_file(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text(shipped_presets().read_text(encoding="utf-8").replace("psa_4steps", "quick"), encoding="utf-8")
        result = psa("presets", "list", "--config", file)
        assert "quick" in result.stdout
        assert "psa_4steps" not in result.stdout


class TestShow:
    def test_takes_the_default_preset(self):
        assert psa("presets", "show", "tiny-wan").stdout == psa("presets", "show", "tiny-wan", "psa_refresh").stdout

    def test_dense_preset(self):
        assert "every query reads every key in full" in psa("presets", "show", "tiny-wan", "baseline").stdout


class TestValidate:
    def test_good_file(self):
        result = psa("presets", "validate", shipped_presets())
        assert result.exit_code == 0
        assert "no mistakes in 21 model sections" in result.stdout

    def test_bad_file(self, tmp_path):
        file = tmp_path / "bad.yaml"
        file.write_text("Model: 5\nOther: 6\n", encoding="utf-8")
        result = psa("presets", "validate", file)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            f"error: {file}: 2 mistakes",
            "  Model: expected a mapping, got 5",
            "  Other: expected a mapping, got 6",
        ]


class TestInit:
    def test_a_file_of_ones_own_to_edit(self, tmp_path):
        file = tmp_path / "new" / "my presets.yaml"
        result = psa("presets", "init", file)
        assert result.exit_code == 0, result.output
        assert file.read_bytes() == shipped_presets().read_bytes()
        assert f"--config '{file}'" in result.stdout
        assert psa("presets", "validate", file).exit_code == 0

    def test_a_file_that_is_there_is_kept_unless_told_otherwise(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("mine")
        refused = psa("presets", "init", file)
        assert (refused.exit_code, file.read_text()) == (1, "mine")
        assert "is there already; name another file, or give --overwrite" in refused.stderr
        assert psa("presets", "init", file, "--overwrite").exit_code == 0
        assert file.read_bytes() == shipped_presets().read_bytes()

    def test_the_shipped_file_is_never_written(self):
        assert psa("presets", "init", shipped_presets(), "--overwrite").exit_code == 1


@pytest.mark.parametrize("name", ["Wan2.1_1.3b", "wan21_1.3b"])
def test_a_model_goes_by_section_or_key(name):
    assert psa("presets", "show", name).stdout.startswith("Wan2.1_1.3b / psa_balanced: ")


def test_a_key_brings_the_preset_that_it_is_run_with():
    assert psa("presets", "show", "cogvideo_5b_lora").stdout.startswith("CogVideo_5b / psa_4steps: ")


def test_schema_is_printed_as_json():
    assert json.loads(psa("presets", "schema").stdout) == presets_json_schema()


class TestFrame:
    def test_version(self):
        assert psa("--version").stdout == f"psa-triton {psa_triton.__version__}\n"

    @pytest.mark.parametrize("option", ["--output-dir", "--output_dir"])
    def test_option_names_with_dash_or_underscore(self, option, tmp_path):
        # An option that does not exist follows: the one before it has been understood if that one is complained of.
        result = psa("generate", option, tmp_path, "--no-such-option")
        assert result.exit_code == 2
        assert "No such option: --no-such-option" in words(result.stderr)

    def test_error_is_one_line_on_stderr(self):
        result = psa("presets", "show", "tiny_wan")
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert "unknown model section 'tiny_wan'; did you mean 'tiny-wan'?" in line

    def test_debug_lets_the_error_through(self):
        result = psa("--debug", "presets", "show", "tiny_wan")
        assert isinstance(result.exception, ValueError)
        assert result.stderr == ""
