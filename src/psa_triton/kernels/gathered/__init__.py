"""Pyramid attention and its gradient in torch's own operations, on any device: gather what query blocks read, attend.

Query blocks with lists of like lengths are stacked, so that short sequences take few calls and long ones stay in the
cache. `ways.py` says how a stack is computed on which processor.
"""

from psa_triton.kernels.gathered.backward import pyramid_attention_backward
from psa_triton.kernels.gathered.forward import pyramid_attention
from psa_triton.kernels.gathered.ways import FUSED

__all__ = ["FUSED", "pyramid_attention", "pyramid_attention_backward"]
