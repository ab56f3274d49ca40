"""Python threads that share many medium-sized tasks, such as one for each query block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch


class Workers:
    """Threads that share tasks, each computing with one ATen thread and without recording gradients."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Workers:
        self._before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "psa", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()
        # set_num_threads also sets the default of threads yet to start; this thread's count is what it was.
        torch.set_num_threads(self._before)

    def run(self, function: Callable[..., None], tasks: Iterable[tuple]) -> None:
        """Call `function(*task)` for every task; tasks are handed out one at a time, in order."""
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

        for future in [self._pool.submit(work) for _ in range(self.count)]:
            future.result()
