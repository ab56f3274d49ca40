import pytest
import torch

from psa_triton import PSAConfig, psa_attention
from psa_triton.kernels.gathered.threads import share_tasks


def test_the_operator_runs_in_inference_mode():
    q, k, v = torch.randn(3, 1, 2, 300, 32, generator=torch.Generator().manual_seed(0))
    expected = psa_attention(q, k, v, PSAConfig(block_n=32), impl="cpu")
    with torch.inference_mode():
        made_here = [x.clone() for x in (q, k, v)]
        out = psa_attention(*made_here, PSAConfig(block_n=32), impl="cpu")
        assert out.is_inference()
        assert torch.equal(out, expected)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [False, True])
def test_all_tasks_are_done_and_the_thread_count_stays(threads, two_threads):
    done = []
    share_tasks(done.extend, iter(range(20)), threads=threads)
    assert sorted(done) == list(range(20))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [False, True])
def test_a_failure_in_a_task_is_raised(threads, two_threads):
    with pytest.raises(ZeroDivisionError):
        share_tasks(lambda tasks: [1 / task for task in tasks], [1, 0], threads=threads)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 7, 16, 100, 2481])
def test_softmax_in_place_gives_the_same_bits(length, dtype):
    """What the forward relies on: torch reads a row before it writes it."""
    x = torch.randn(3, 130, length, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.softmax(-1)
    assert torch.equal(torch.softmax(x, -1, out=x), expected)
