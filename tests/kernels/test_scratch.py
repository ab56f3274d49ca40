"""Memory that stays for a thread's next call."""

import threading

import pytest
import torch

from psa_triton import psa_attention
from psa_triton.kernels.gathered.scratch import thread_scratch

CPU = torch.device("cpu")


def take(scratch, bytes_):
    return scratch.take("rows", (bytes_,), torch.uint8, CPU)


def test_a_small_tensor_is_the_next_calls_and_a_large_one_is_not():
    with thread_scratch() as scratch:
        small = take(scratch, 1000)
    with thread_scratch() as scratch:
        assert take(scratch, 900).data_ptr() == small.data_ptr()
        take(scratch, 8 << 20)
    with thread_scratch() as scratch:
        assert take(scratch, 1000).untyped_storage().nbytes() == 1000


def test_calls_within_a_call_and_of_other_threads_have_their_own():
    others = []

    def call():
        with thread_scratch() as scratch:
            others.append(take(scratch, 1000))

    with thread_scratch() as scratch:
        mine = take(scratch, 1000)
        call()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert len({x.data_ptr() for x in (mine, *others)}) == 3


def test_it_is_given_back_after_an_error():
    with pytest.raises(KeyboardInterrupt), thread_scratch() as scratch:
        first = take(scratch, 1000)
        raise KeyboardInterrupt
    with thread_scratch() as scratch:
        assert take(scratch, 1000).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("impl", ["cpu", "torch"])
def test_calls_in_and_outside_of_inference_mode_follow_one_another(impl):
    q, k, v = torch.randn(3, 1, 2, 512, 64, generator=torch.Generator().manual_seed(0))
    plain = psa_attention(q, k, v, impl=impl)
    with torch.inference_mode():
        assert torch.equal(psa_attention(q, k, v, impl=impl), plain)
    k.requires_grad_()
    again = psa_attention(q, k, v, impl=impl)
    again.sum().backward()
    torch.testing.assert_close(again, plain)
    assert k.grad.isfinite().all()
