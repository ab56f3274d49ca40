from __future__ import annotations

import pytest
import torch

from psa_triton import PSAConfig, psa_attention
from psa_triton.threads import Workers


def test_the_operator_runs_in_inference_mode() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 32, generator=torch.Generator().manual_seed(0))
    expected = psa_attention(q, k, v, PSAConfig(block_n=32), impl="cpu")
    with torch.inference_mode():
        made_here = [x.clone() for x in (q, k, v)]
        out = psa_attention(*made_here, PSAConfig(block_n=32), impl="cpu")
        assert out.is_inference()
        assert torch.equal(out, expected)


def test_threads_share_all_tasks_and_leave_the_thread_count() -> None:
    before, done = torch.get_num_threads(), []
    with Workers(2) as workers:
        workers.run(done.append, ((task,) for task in range(20)))
    assert sorted(done) == list(range(20))
    assert torch.get_num_threads() == before


def test_a_failure_in_a_thread_is_raised() -> None:
    with Workers(2) as workers, pytest.raises(ZeroDivisionError):
        workers.run(divmod, [(1, 0)])
