"""PSA in the prefill of transformers' language models: importing makes `attn_implementation="psa"` valid."""

from psa_triton.integrations.handle import PSAHandle
from psa_triton.integrations.transformers.attach import apply_psa
from psa_triton.integrations.transformers.attention import register
from psa_triton.integrations.transformers.stats import AttentionRecord, AttentionSummary, PSAStats

__all__ = ["AttentionRecord", "AttentionSummary", "PSAHandle", "PSAStats", "apply_psa", "register"]

register()
