"""Peers that read the same keys give the same output; those that cannot run are listed with the reason."""

from pathlib import Path
from shutil import which

import peers
import pytest
import torch
from peers import LeftOut, Problem
from tensors.adversarial import adversarial_tensors
from torch.nn.attention.flex_attention import flex_attention

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def problem():
    x = adversarial_tensors("random", grid=(4, 16, 16))
    return Problem.of(x, 1, torch.device("cpu"), torch.float32)


needs_compiler = pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reads", ["all keys", pytest.param("levels 1/0", marks=needs_compiler), "pyramid"])
def test_peers_that_read_the_same_agree(problem, reads, monkeypatch):
    if reads != "levels 1/0":  # uncompiled, FlexAttention does not look at lists of blocks, only at mask functions
        monkeypatch.setattr(peers, "compiled_flex", lambda: flex_attention)
    runs = {}
    for name, peer in peers.OPERATORS.items():
        try:
            if peer.reads == reads:
                runs[name] = peer.prepare(problem)
        except LeftOut:
            continue
    assert len(runs) >= 2
    outputs = [run() for run in runs.values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_what_needs_a_gpu_is_left_out_with_the_reason(problem, monkeypatch, capsys):
    kept = ("torch SDPA", "torch SDPA, flash", "SageAttention 1", "PSA, levels given")
    monkeypatch.setattr(peers, "OPERATORS", {name: peers.OPERATORS[name] for name in kept})
    rows = {row["name"]: row for row in peers.measure_operators(problem, repeats=1)}
    assert rows["torch SDPA, flash"]["left_out"] == rows["SageAttention 1"]["left_out"] == "needs an NVIDIA GPU"
    assert rows["torch SDPA"]["error"] < 1e-5 < rows["PSA, levels given"]["error"]
    assert "torch SDPA, flash: needs an NVIDIA GPU" in capsys.readouterr().out


def test_the_readme_names_every_benchmark():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()]
    assert scripts
    assert sorted(path.name for path in scripts if f"benchmarks/{path.name}" not in text) == []
