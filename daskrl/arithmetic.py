"""What decides bits and belongs to the process, not to the run: torch's switches, and where arrays begin in memory.

Every task, and all other code that computes for a run, computes within `pinned`: it sets every switch to a fixed value,
and puts back the process' own values afterwards. Arrays that are computed with go through `aligned`.

Import-light: functions import torch when they are called.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskrl.records import Array

ALIGNMENT = 64  # bytes; torch's own, and a cache line's

# -- where arrays begin --------------------------------------------------------------------------------------------


def aligned(array: Array) -> Array:
    """The array, or where it does not begin at a multiple of `ALIGNMENT` a copy that does, contiguous.

    The bits of a matrix product may depend on where in memory its operands begin, and that is where their bytes
    happened to arrive. So whatever is computed with and came from a file or another process has passed through here.
    """
    array = np.asarray(array)
    if array.__array_interface__["data"][0] % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    copy.flags.writeable = array.flags.writeable
    return copy


def aligned_all(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """`aligned`, of each of some arrays by name."""
    return {name: aligned(array) for name, array in arrays.items()}


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """``np.empty``, but begun at a multiple of `ALIGNMENT`; NumPy's own begin at multiples of 16."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    made: Array = memory[first : first + size].view(dtype).reshape(shape)
    return made


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """``np.zeros``, begun as by `empty`."""
    made = empty(shape, dtype)
    made[...] = 0
    return made


# -- switches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    """A setting of the whole process.

    Attributes
    ----------
    get, set : read and set it; None where it cannot be read, and is left alone.
    wanted : what it may be while a run computes; the first is set where it is anything else.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]
    wanted: tuple[Any, ...]


@dataclass
class _Process:
    """Who computes in this process, and what was there before the first of them came.

    Attributes
    ----------
    inside : device -> how many compute.
    before : switches, what each was, and what it is meanwhile.
    threads : torch's, where the first came from.
    more : switches of what was imported since.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    inside: Counter[str] = field(default_factory=Counter)
    before: list[tuple[Switch, Any, Any]] = field(default_factory=list)
    threads: int = 1
    more: list[Switch] = field(default_factory=list)


_PROCESS = _Process()
_THREAD = threading.local()
_BUFFER = 8192  # elements that NumPy casts at a time, by default


@contextlib.contextmanager
def pinned(threads: int = 1, device: str = "cpu") -> Iterator[None]:
    """Compute under torch's and NumPy's switches as every process of a run has them.

    Switches are the whole process's, or each thread has its own. Those of the process are set while anything is
    computed, in whatever thread, and put back by the last that leaves; a thread's own are put back at once. What a
    user set (a default dtype, deterministic algorithms, a number of threads, autocast, a mode without gradients, ...)
    neither changes a bit of a run nor is lost. May be entered again within.

    Parameters
    ----------
    threads : torch's, of what is computed here.
    device : with ``"cuda"`` torch's algorithms are deterministic ones. The process's first product on a GPU has to be
        within: cuBLAS reads how large its workspace is once.
    """
    _enter(device)
    try:
        with of_thread(threads):
            yield
    finally:
        _leave(device)


@contextlib.contextmanager
def of_thread(threads: int = 1) -> Iterator[None]:
    """The part of `pinned` that each thread sets for itself: for a thread that was started within `pinned`."""
    import torch

    # The first time that torch looks for a thread's number of threads, it takes what was set last, in any thread: have
    # it look before. A thread that never was here may thereby have got the number of those who compute.
    found = torch.get_num_threads()
    before = found if getattr(_THREAD, "known", False) else _PROCESS.threads
    _THREAD.known = True
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.callback(torch.set_autocast_enabled, kind, True)
                torch.set_autocast_enabled(kind, False)
        if _flushes_denormals():
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        if torch._C._len_torch_function_stack():  # of torch.set_default_device, or `with torch.device(...)`
            stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if np.getbufsize() != _BUFFER:  # a sum that casts is taken over so many at a time
            stack.callback(np.setbufsize, np.getbufsize())
            np.setbufsize(_BUFFER)
        yield


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Make networks without moving torch's global generator on, which is the user's.

    Layers draw weights from it when they are made; those of a run are then replaced.
    """
    import torch

    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _flushes_denormals() -> bool:
    """Whether this thread takes numbers below the smallest normal one for 0, as libraries made for speed have it."""
    return bool(np.float64(5e-324) * np.float64(1) == 0)


def also(switch: Switch) -> None:
    """Have one more switch from here on: of something that has just been imported."""
    with _PROCESS.lock:
        if all(other.name != switch.name for other in _PROCESS.more):
            _PROCESS.more.append(switch)
            if _PROCESS.inside.total():
                _take([switch])
    if not _PROCESS.inside.total():
        switch.set(switch.wanted[0])  # whoever computes outside of `pinned` needs it as well


def _enter(device: str) -> None:
    import torch

    with _PROCESS.lock:
        if not _PROCESS.inside.total():
            _PROCESS.threads = torch.get_num_threads()
            _take([*_switches(), *_PROCESS.more])
        if device == "cuda" and not _PROCESS.inside[device]:
            _take(_of_cuda())
        _PROCESS.inside[device] += 1


def _leave(device: str) -> None:
    with _PROCESS.lock:
        _PROCESS.inside[device] -= 1
        if _PROCESS.inside.total():
            return
        while _PROCESS.before:
            switch, before, meanwhile = _PROCESS.before.pop()
            if before != meanwhile and before is not None and switch.get() == meanwhile:  # else somebody set it since
                switch.set(before)


def _take(switches: Sequence[Switch]) -> None:
    """Set switches, and remember what they were. Setting one may change another, so all are read first."""
    found = [(switch, switch.get()) for switch in switches]
    for switch, value in found:
        if value is not None and value not in switch.wanted:
            switch.set(switch.wanted[0])
    _PROCESS.before += [(switch, value, switch.get()) for switch, value in found]


@functools.cache
def _switches() -> tuple[Switch, ...]:
    import torch

    found = [
        Switch("default dtype", torch.get_default_dtype, torch.set_default_dtype, (torch.float32,)),
        _deterministic(False),
    ]
    flags = {
        "mkldnn_enabled": True, "mkldnn_deterministic": False, "nnpack_enabled": True,
        "cudnn_enabled": True, "cudnn_deterministic": False, "cudnn_benchmark": False,
    }  # fmt: skip
    for name, wanted in flags.items():
        if hasattr(torch._C, f"_get_{name}"):
            found.append(_flag(name, wanted))
    # In what precision products of float32 are computed. torch 2.9 has new switches beside the old ones, which set some
    # of the new and cannot be read where those have been set otherwise: the old ones are set last, and put back first.
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        found += [_precision(*which) for which in PRECISIONS]
    return (*found, _flag("cudnn_allow_tf32", True), _flag("float32_matmul_precision", "highest"))


# (backend, operation) -> what torch has by default, or what is the same.
PRECISIONS = [
    *((backend, operation, ("none", "ieee")) for backend, operation in (
        ("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
        ("cuda", "all"), ("cuda", "matmul"),
    )),
    *(("cuda", operation, ("tf32",)) for operation in ("conv", "rnn")),
]  # fmt: skip


def _precision(backend: str, operation: str, wanted: tuple[str, ...]) -> Switch:
    import torch

    def put(value: str) -> None:
        torch._C._set_fp32_precision_setter(backend, operation, value)

    def get() -> str:
        return str(torch._C._get_fp32_precision_getter(backend, operation))

    return Switch(f"fp32_precision of {backend} {operation}", get, put, wanted)


def _flag(name: str, wanted: Any) -> Switch:
    import torch

    read = getattr(torch._C, f"_get_{name}")

    def get() -> Any:
        try:
            return read()
        except RuntimeError:  # the new switches contradict it
            return None

    return Switch(name, get, getattr(torch._C, f"_set_{name}"), (wanted,))


def _deterministic(wanted: bool) -> Switch:
    import torch

    return Switch(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ((wanted, False),),
    )


def _of_cuda() -> list[Switch]:
    import torch

    filled: Any = torch.utils.deterministic  # with it, memory that nobody reads

    def put(value: str) -> None:
        if value:
            os.environ[_WORKSPACE] = value
        else:
            del os.environ[_WORKSPACE]

    def fill(value: bool) -> None:
        filled.fill_uninitialized_memory = value

    return [
        Switch(_WORKSPACE, lambda: os.environ.get(_WORKSPACE, ""), put, (":4096:8", ":16:8")),
        _deterministic(True),
        Switch("fill_uninitialized_memory", lambda: filled.fill_uninitialized_memory, fill, (False,)),
    ]


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
