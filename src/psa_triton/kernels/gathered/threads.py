"""Python threads that share many medium-sized tasks, such as one for each query block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch


def run_tasks(function: Callable[..., None], tasks: Iterable[tuple], *, threads: bool = True) -> None:
    """Call `function(*task)` for every task, without recording gradients.

    Args:
        function: computes one task.
        tasks: handed out one at a time, in order.
        threads: whether as many Python threads as torch uses share them, each with one thread of torch; otherwise they
            follow one another, each with all of them.
    """
    if not threads or torch.get_num_threads() == 1:
        with torch.no_grad():
            for task in tasks:
                function(*task)
        return
    lock, queue = Lock(), iter(tasks)
    inference = torch.is_inference_mode_enabled()  # a thread does not inherit it, and must to write its tensors

    def work() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with lock:
                    task = next(queue, None)
                if task is None:
                    return
                function(*task)

    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "psa", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for future in [pool.submit(work) for _ in range(count)]:
                future.result()
    finally:
        # set_num_threads also sets the default of threads yet to start; this thread's count is what it was.
        torch.set_num_threads(count)
