"""What stands in for the parts of Gluon that a kernel uses, which has no interpreter: tensors, threads, barriers, TMA.

Partitions are threads. A barrier has a phase, arrivals and bytes to come. What TMA writes is NaN from the call on, and
arrives, in random order, while somebody waits; products are computed where they are waited for. So a wait that is left
out gives NaN, and one that never ends is known as such: all partitions wait, and nothing is under way.
"""

import importlib.util
import random
import threading
from pathlib import Path
from types import FunctionType, SimpleNamespace

import torch
from triton.language import constexpr

from psa_triton.kernels.triton import rows


class DeadlockError(Exception):
    """All partitions wait for each other."""


class World:
    """What partitions of a program share."""

    def __init__(self, seed):
        self.changed, self.random = threading.Condition(), random.Random(seed)
        self.copies, self.running, self.waiting, self.changes, self.error = [], 1, 0, 0, None

    def wait(self, is_over):
        with self.changed:
            while not is_over():
                if self.copies:
                    self.copies.pop(self.random.randrange(len(self.copies)))()
                    continue
                self.waiting += 1
                self.look_for_deadlock()
                before = self.changes
                self.changed.wait_for(lambda: self.error or self.changes != before)  # noqa: B023
                if self.error:
                    raise self.error

    def has_changed(self):
        self.waiting = 0
        self.changes += 1
        self.changed.notify_all()

    def look_for_deadlock(self):
        if self.running and self.waiting == self.running and not self.copies:
            self.error = self.error or DeadlockError()
            self.changed.notify_all()

    def run(self, function, arguments):
        try:
            function(*arguments)
        except Exception as error:
            self.error = self.error or error
        with self.changed:
            self.running -= 1
            self.look_for_deadlock()
            if self.error:
                self.changed.notify_all()

    def specialize(self, partitions, worker_warps, worker_registers):
        assert len(worker_warps) == len(worker_registers) == len(partitions) - 1
        self.running = len(partitions)
        threads = [threading.Thread(target=self.run, args=partition) for partition in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error
        assert not self.copies, "a program ends with loads under way"
        self.running = 1


class Barrier:
    def __init__(self, world):
        self.world, self.phase = world, 0

    def init(self, count):
        self.count = self.left = count
        self.bytes = 0

    def take(self, arrivals, bytes=0):
        with self.world.changed:
            self.left, self.bytes = self.left - arrivals, self.bytes + bytes
            assert self.left >= 0, "more arrivals than a phase has"
            if self.left == 0 and self.bytes == 0:
                self.phase, self.left = self.phase ^ 1, self.count
                self.world.has_changed()

    def wait(self, parity):
        self.world.wait(lambda: self.phase != parity)


class Memory:
    """Shared memory; matrices of 16-bit numbers lie in columns of 128 bytes, one after another."""

    def __init__(self, world, dtype, shape, layout, flat=None):
        self.world, self.dtype, self.shape, self.flat = world, dtype, shape, flat
        if flat is None and dtype == torch.int64:
            self.barriers = [Barrier(world) for _ in range(shape[0])]
        elif flat is None:
            self.flat = torch.full((torch.Size(shape).numel(),), torch.nan, dtype=dtype)

    def index(self, i):
        if self.flat is None:
            return self.barriers[i]
        size = self.flat.numel() // self.shape[0]
        return Memory(self.world, self.dtype, self.shape[1:], None, self.flat[i * size : (i + 1) * size])

    def as_shape(self, dtype, shape, layout):
        assert torch.Size(shape).numel() == self.flat.numel()
        return Memory(self.world, dtype, shape, layout, self.flat)

    @property
    def matrix(self):
        return self.flat.view(-1, self.shape[-2], 64).transpose(0, 1)

    def permute(self, order):
        return SimpleNamespace(load=lambda: self.load().mT)

    def load(self, layout=None):
        return self.matrix.reshape(self.shape[-2:]).clone()

    def store(self, value):
        self.matrix.copy_(value.reshape(self.matrix.shape))


class Pointer:
    def __init__(self, storage, at):
        self.storage, self.at = storage, at

    @classmethod
    def to(cls, x):
        return cls(x.as_strided((x.untyped_storage().size() // x.itemsize,), (1,), 0), x.storage_offset())

    def __add__(self, other):
        return Pointer(self.storage, self.at + other)


class Boxes:
    """A tensor in boxes, of a `TensorDescriptor`."""

    def __init__(self, descriptor):
        self.base, self.block, self.dtype, self.layout = (
            descriptor.base,
            descriptor.block_shape,
            descriptor.base.dtype,
            None,
        )

    def load(self, corner, barrier, memory):
        assert self.block == memory.shape
        memory.store(torch.full(self.block, torch.nan))
        box = torch.zeros(self.block, dtype=self.dtype)
        there = self.base[tuple(slice(int(a), int(a) + b) for a, b in zip(corner, self.block, strict=True))]
        box[tuple(map(slice, there.shape))] = there

        def arrive():
            memory.store(box)
            barrier.take(0, -box.nbytes)

        with memory.world.changed:
            memory.world.copies.append(arrive)
            memory.world.has_changed()


def load(pointer, mask=True, other=0):
    at, mask = torch.broadcast_tensors(torch.as_tensor(pointer.at), torch.as_tensor(mask))
    return torch.where(mask, pointer.storage[torch.where(mask, at, 0).long()], other)


def store(pointer, value, mask):
    at, mask = torch.broadcast_tensors(pointer.at, mask)
    pointer.storage[at[mask]] = value[mask]


def product(a, b, total, *, use_acc=True, is_async):
    assert is_async

    def compute():
        sum = (a.load() if isinstance(a, Memory) else a).float() @ b.load().float()
        return sum + total if use_acc else sum

    return compute


def number(x):
    return torch.as_tensor(x, dtype=torch.float32) if isinstance(x, float) else x


def language(world):
    """Of `gl` and `tl` what kernels use."""
    return SimpleNamespace(
        **{name: getattr(torch, name) for name in ("int32", "int64", "float32", "exp2", "log2")},
        **{name: lambda *a, **k: None for name in ("NVMMASharedLayout", "NVMMADistributedLayout", "assume")},
        **{name: lambda *a, **k: None for name in ("BlockedLayout", "SliceLayout", "DotOperandLayout")},
        program_id=lambda axis: torch.tensor(world.program),
        cdiv=lambda a, b: -(-a // b),
        arange=lambda start, end, layout: torch.arange(start, end),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        where=lambda mask, a, b: torch.where(torch.as_tensor(mask), number(a), number(b)),
        minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
        maximum=lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis),
        convert_layout=lambda x, layout: x,
        static_range=range,
        load=load,
        store=store,
        allocate_shared_memory=lambda dtype, shape, layout: Memory(world, dtype, shape, layout),
        warp_specialize=world.specialize,
    )


MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: None,
    init=Barrier.init,
    expect=lambda barrier, bytes: barrier.take(1, bytes),
    arrive=lambda barrier, count: barrier.take(count),
    wait=Barrier.wait,
)


def run(launch, module, seed=0):
    """Run a launch of a kernel of `module`, one program after another."""
    world = World(seed)
    gl = language(world)
    names = vars(module) | {
        "gl": gl,
        "mbarrier": MBARRIER,
        "fence_async_shared": lambda: None,
        "warpgroup_mma": product,
        "warpgroup_mma_wait": lambda count, deps: deps[0](),
        "_memory_as": Memory.as_shape,
        "_load_box": Boxes.load,
        "query_tile": FunctionType(rows.query_tile.fn.__code__, vars(rows) | {"tl": gl}),
    }
    for name, value in list(names.items()):
        if isinstance(value, constexpr):
            names[name] = value.value
        elif hasattr(value, "is_gluon"):
            names[name] = FunctionType(value.fn.__code__, names)

    def as_argument(x):
        if isinstance(x, tuple):
            return tuple(map(as_argument, x))
        return Pointer.to(x) if isinstance(x, torch.Tensor) else Boxes(x) if hasattr(x, "block_shape") else x

    arguments = {name: as_argument(x) for name, x in launch.arguments.items()}
    for world.program in range(launch.grid[0]):
        names[launch.kernel.fn.__name__](**arguments, **launch.constants)


def changed(module, folder, old, new):
    """The module with a mistake in its source."""
    source = Path(module.__file__).read_text()
    assert old in source
    file = folder / "changed.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("changed", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
