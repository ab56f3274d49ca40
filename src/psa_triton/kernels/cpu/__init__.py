"""Pyramid attention and its gradient on a CPU: gather what a query block reads, then products and a softmax.

The work is many medium-sized products, so Python threads with one ATen thread each share the query blocks. That keeps
every core busy without the synchronisation that several threads inside one product would cost.
"""

from psa_triton.kernels.cpu.backward import pyramid_attention_backward
from psa_triton.kernels.cpu.forward import pyramid_attention

__all__ = ["pyramid_attention", "pyramid_attention_backward"]
