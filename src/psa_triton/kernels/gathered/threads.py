"""Python threads that share many medium-sized tasks, such as one for each query block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")


def share_tasks(work: Callable[[Iterator[T]], None], tasks: Iterable[T], *, threads: bool = True) -> None:
    """Work through `tasks`, without recording gradients.

    Args:
        work: does the tasks that it is handed, one at a time and in order.
        tasks: each goes to one thread.
        threads: whether as many Python threads as torch uses share them, each with one thread of torch; otherwise
            `work` gets them all, with all threads of torch.
    """
    if not threads or torch.get_num_threads() == 1:
        with torch.no_grad():
            work(iter(tasks))
        return
    lock, queue = Lock(), iter(tasks)
    inference = torch.is_inference_mode_enabled()  # a thread does not inherit it, and must to write its tensors

    def handed_out() -> Iterator[T]:
        while True:
            with lock:
                try:
                    task = next(queue)
                except StopIteration:
                    return
            yield task

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(handed_out())

    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "psa", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for future in [pool.submit(run) for _ in range(count)]:
                future.result()
    finally:
        # set_num_threads also sets the default of threads yet to start; this thread's count is what it was.
        torch.set_num_threads(count)
