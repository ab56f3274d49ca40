from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from psa_triton import PSAConfig, psa_attention
from psa_triton.kernels.gathered.threads import run_tasks


def test_the_operator_runs_in_inference_mode() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 32, generator=torch.Generator().manual_seed(0))
    expected = psa_attention(q, k, v, PSAConfig(block_n=32), impl="cpu")
    with torch.inference_mode():
        made_here = [x.clone() for x in (q, k, v)]
        out = psa_attention(*made_here, PSAConfig(block_n=32), impl="cpu")
        assert out.is_inference()
        assert torch.equal(out, expected)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [False, True])
def test_all_tasks_are_done_and_the_thread_count_stays(threads: bool, two_threads: None) -> None:
    done: list[int] = []
    run_tasks(done.append, ((task,) for task in range(20)), threads=threads)
    assert sorted(done) == list(range(20))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [False, True])
def test_a_failure_in_a_task_is_raised(threads: bool, two_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        run_tasks(divmod, [(1, 0)], threads=threads)
    assert torch.get_num_threads() == 2
