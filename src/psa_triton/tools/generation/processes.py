"""Several processes that share the videos of one run, as `torchrun` or `accelerate launch` start them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long `gather` waits: a process that is done, while others make videos. All else has torch's time limit."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Every process must make the same calls, in the same order.

    Attributes:
        count: number of processes, on all machines.
        index: of this one among them; the main process has 0.
        local_index: of this one among those of its machine.
        group: through which they wait for each other; None for a process alone.
    """

    count: int = 1
    index: int = 0
    local_index: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items that are this process's to do: item `i` belongs to process `i % count`."""
        return list(items[self.index :: self.count])

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, in every process.

        Raises:
            Exception: that of `make`, in every process.
            ConnectionError: another process has died.
        """
        made: list[Any] = [None, None]
        if self.is_main:
            try:
                made[0] = make()
            except Exception as error:  # the others would go on without what it was to make
                made[1] = error
        with _deaths_named():
            value, failure = broadcast_object_list(made)
        if failure is not None:
            raise failure
        return value

    def gather(self, item: T) -> list[T]:
        """The items of all processes by index, in every process; waits for the last.

        Raises:
            ConnectionError: another process has died.
        """
        if self.group is None:
            return [item]
        items: list[Any] = [None] * self.count
        with _deaths_named():
            dist.all_gather_object(items, item, group=self.group)
        return items


ALONE = Processes()


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """The processes that were launched together, until the end of the block; this one alone without a launcher.

    At the end each waits for the others: launchers stop all processes as soon as one has left with an error.
    """
    # `cpu` is for what the processes tell each other, in a few bytes: it leaves the accelerators alone.
    state = PartialState(cpu=True)
    try:
        group = dist.new_group(timeout=_PATIENCE) if state.num_processes > 1 else None
        yield Processes(state.num_processes, state.process_index, state.local_process_index, group)
        with _deaths_named():
            state.wait_for_everyone()
    finally:
        state.destroy_process_group()


@contextmanager
def _deaths_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run has died or cannot be reached; videos that are finished are kept: start the "
            f"same command again for the rest ({str(error).splitlines()[0]})"
        ) from error
