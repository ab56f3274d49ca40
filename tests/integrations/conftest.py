"""What tests of integrations share: `small_pipelines` importable, and short sequences sparse."""

import sys
from pathlib import Path

import pytest

from psa_triton.integrations.rules import MIN_KEY_BLOCKS

# pytest's importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def short_sequences_sparse(monkeypatch):
    """On a CPU sequences of a test's length would all run dense; `test_diffusers_rules.py` tests that they do."""
    monkeypatch.setattr("psa_triton.integrations.rules.break_even", lambda *_, **__: 0)
    monkeypatch.setitem(MIN_KEY_BLOCKS, "diffusion", 2)
