"""Python threads that share many medium-sized tasks, such as one for each query block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock, Thread
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
    count, lock, queue = torch.get_num_threads(), Lock(), iter(tasks)
    inference = torch.is_inference_mode_enabled()  # a thread does not inherit it, and must to write its tensors
    failures: list[BaseException] = []

    def handed_out() -> Iterator[T]:
        while not failures:
            with lock:
                try:
                    task = next(queue)
                except StopIteration:
                    return
            yield task

    def run() -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(inference), torch.no_grad():
                work(handed_out())
        except BaseException as error:
            failures.append(error)

    # An executor would refuse its work once the main thread has ended, while others of the program still run.
    workers: list[Thread] = []
    try:
        for _ in range(count):
            worker = Thread(target=run, name="psa")
            worker.start()
            workers.append(worker)
        for worker in workers:
            worker.join()
    except BaseException as error:  # no more threads, or Ctrl-C: those that run end with the task at hand
        failures.append(error)
        for worker in workers:
            worker.join()
    finally:
        # It sets the default of threads yet to start, and MKL's of all: this thread's count is what it was.
        torch.set_num_threads(count)
    if failures:
        raise failures[0]
