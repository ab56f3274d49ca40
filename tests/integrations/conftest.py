"""Tests of integrations run short sequences sparse."""

import pytest

from psa_triton.integrations.rules import MIN_KEY_BLOCKS


@pytest.fixture(autouse=True)
def short_sequences_sparse(monkeypatch):
    """On a CPU sequences of a test's length would all run dense; `test_diffusers_rules.py` tests that they do."""
    monkeypatch.setattr("psa_triton.integrations.rules.break_even", lambda *_, **__: 0)
    monkeypatch.setitem(MIN_KEY_BLOCKS, "diffusion", 2)
