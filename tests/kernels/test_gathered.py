"""Parts of the gathered attention: lists of rows, shared tasks, memory that stays for a thread's next call."""

import threading

import pytest
import torch
from programs import python

from psa_triton import psa_attention
from psa_triton.kernels.gathered.schedule import lists, make_schedule, stacked, step_size
from psa_triton.kernels.gathered.scratch import thread_scratch
from psa_triton.kernels.gathered.threads import share_tasks
from psa_triton.pyramid import pyramid_layout

CPU = torch.device("cpu")


def test_lists_computed_by_hand():
    # Blocks of 16: a step is 2 rows; 3 blocks at level 1 are rows 0-47 (steps 0-23), level 2 starts at step 24,
    # level 4 at step 36, level 8 at step 42, behind which step 45 holds nothing.
    layout = pyramid_layout(48, 16, 8)
    levels = torch.tensor([[1, 0, 8], [0, 0, 0], [4, 2, 0]], dtype=torch.int8)
    schedule = make_schedule(levels[None], layout)
    assert schedule.size == 2
    assert schedule.start.tolist() == [0, 9, 9, 15]
    assert schedule.steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 44, 36, 37, 28, 29, 30, 31]
    assert stacked(schedule, range(3), rows=36) == [[0, 2]]
    assert lists(schedule, [0, 2], nothing=45).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 44],
        [45, 45, 45, 36, 37, 28, 29, 30, 31],
    ]
    assert stacked(schedule, range(3), rows=35) == [[0], [2]]
    assert lists(schedule, [2], nothing=45).tolist() == [36, 37, 28, 29, 30, 31]


def test_a_level_coarser_than_a_unit_makes_steps_shorter():
    layout = pyramid_layout(40, 16, 16)
    assert step_size(layout) == 1
    schedule = make_schedule(torch.tensor([[[16, 0, 8]]], dtype=torch.int8), layout)
    assert schedule.steps.tolist() == [90, 88]  # the last block has 8 tokens: one group of 8, where two had room


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


def test_tasks_are_shared_after_the_main_thread_has_ended():
    script = """if True:
        import threading, time, torch
        from psa_triton.kernels.gathered.threads import share_tasks

        def last():
            time.sleep(0.5)
            share_tasks(done.extend, range(4))
            print(sorted(done))

        done = []
        torch.set_num_threads(2)
        threading.Thread(target=last).start()
    """
    done = python("-c", script)
    assert done.stdout.strip() == "[0, 1, 2, 3]", done.stderr


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
        out = psa_attention(q.clone(), k.clone(), v.clone(), impl=impl)
        assert out.is_inference() and torch.equal(out, plain)
    k.requires_grad_()
    again = psa_attention(q, k, v, impl=impl)
    again.sum().backward()
    torch.testing.assert_close(again, plain)
    assert k.grad.isfinite().all()
