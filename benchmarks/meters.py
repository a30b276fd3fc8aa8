"""What can be measured about one optimizer step besides its duration."""

from __future__ import annotations

import ctypes
import gc
import os
import time
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

try:
    import resource
except ImportError:  # Windows
    resource = None


def iter_tensors(obj: object, packages: tuple[str, ...], seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor reachable through containers and objects whose class is from one of ``packages``."""
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return
    seen.add(id(obj))
    children: list[object] = []
    if isinstance(obj, Tensor):
        yield obj
        children = list(getattr(obj, "__dict__", {}).values())  # quantised tensor subclasses
    elif isinstance(obj, dict):
        children = list(obj.values())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        children = list(obj)
    elif type(obj).__module__.partition(".")[0] in packages:
        children = list(getattr(obj, "__dict__", {}).values())
        for cls in type(obj).__mro__:
            names = cls.__dict__.get("__slots__", ())
            children += [getattr(obj, n, None) for n in ([names] if isinstance(names, str) else names)]
    for child in children:
        yield from iter_tensors(child, packages, seen)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the distinct storages that the optimizer holds beyond the parameters and gradients.

    Counted from the tensors reachable from the optimizer object itself, so caches, tables and work
    buffers that live outside ``optimizer.state`` are counted too.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = {t.untyped_storage().data_ptr() for p in params for t in (p, p.grad) if t is not None}
    held: dict[int, int] = {}
    packages = (type(optimizer).__module__.partition(".")[0], "automagic_cameamp")
    for tensor in iter_tensors([optimizer.state, vars(optimizer)], packages):
        for part in _parts(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in foreign:
                held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that a wrapper, such as a quantised one, consists of; a plain tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


class OpMeter(TorchDispatchMode):
    """Counts the ATen operators dispatched and the peak of live bytes they allocated."""

    def __init__(self):
        super().__init__()
        self.ops = 0
        self.allocated = 0
        self.live = 0
        self.peak = 0
        self._storages: dict[int, list[int]] = {}  # data pointer -> [bytes, tensors alive]
        self._tensors: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A storage that an argument already had is not new memory, whatever the operator returns.
        given = {_pointer(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        self.ops += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._record(tensor, given)
        return out

    def _record(self, tensor: Tensor, given: set[int]) -> None:
        pointer = _pointer(tensor)
        if pointer == 0 or id(tensor) in self._tensors:
            return
        if pointer not in self._storages:
            if pointer in given:
                return
            size = tensor.untyped_storage().nbytes()
            self._storages[pointer] = [size, 0]
            self.allocated += size
            self.live += size
            self.peak = max(self.peak, self.live)
        self._storages[pointer][1] += 1
        key = id(tensor)
        self._tensors[key] = weakref.ref(tensor, lambda _, key=key, pointer=pointer: self._drop(key, pointer))

    def _drop(self, key: int, pointer: int) -> None:
        self._tensors.pop(key, None)
        entry = self._storages.get(pointer)
        if entry is None:
            return
        entry[1] -= 1
        if entry[1] == 0:
            self.live -= entry[0]
            del self._storages[pointer]


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without storage (meta, sparse)
        return 0


def rss_peak_mib(function) -> float | None:
    """How far the resident set rose above its level before the call, in MiB; None without Linux's /proc."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # free heap pages would hide a rise of the same size
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
        before = status_kib("VmRSS")
        function()
        return max(0.0, (status_kib("VmHWM") - before) / 1024)
    except (OSError, AttributeError):
        function()
        return None


def status_kib(field: str) -> int:
    """One memory field of /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status")


def minor_faults() -> int:
    """Pages that the kernel has handed to this process so far; 0 where that is not counted."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def warm_allocator() -> None:
    """Put glibc's allocator into the state in which a training process has it.

    glibc returns free memory to the kernel above a threshold that starts low and rises when a large
    block is freed, as activations are in training. A process that only ever steps an optimizer keeps
    the low threshold, and temporaries of a megabyte cost page faults each time.
    """
    block = torch.empty(31 * 2**20, dtype=torch.uint8)  # the rule holds for blocks up to 32 MiB
    del block


class Neighbours:
    """CPU time that other processes used on this machine while ours was being timed."""

    def __init__(self):
        self.hertz = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self.mark()

    def mark(self) -> None:
        self.start = (self._busy(), self._own(), time.perf_counter())

    def cores(self) -> float:
        """Average number of cores in use by others since ``mark``. 0.0 where it cannot be known.

        The kernel counts in ticks (usually 10 ms), so use it over 100 ms or more.
        """
        busy, own, then = self.start
        elapsed = time.perf_counter() - then
        if busy is None or elapsed <= 0:
            return 0.0
        return max(0.0, (self._busy() - busy - (self._own() - own)) / elapsed)

    def _busy(self) -> float | None:
        try:
            with open("/proc/stat") as file:
                fields = [int(v) for v in file.readline().split()[1:]]
        except OSError:
            return None
        idle = fields[3] + fields[4]
        return (sum(fields[:8]) - idle) / self.hertz

    @staticmethod
    def _own() -> float:
        times = os.times()
        return times.user + times.system
