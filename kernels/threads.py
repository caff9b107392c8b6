"""Run compiled kernels on several threads, and stay alive through forks and concurrent calls.

Numba brings two thread layers. Its OpenMP layer kills a forked child that uses it after its parent
has; its own workqueue aborts the process when two Python threads call it at once. A DataLoader
forks, and a server calls from many threads. So our kernels are plain loops that release the GIL
(`@native`), and a small pool of Python threads (`run`) calls them side by side.

That makes our kernels safe in a forked child. torch's own operators are so only where torch keeps to one
thread, as it does in the workers of a DataLoader, and where no thread that used torch is about to end at the
moment of the fork: MKL holds a lock then, which its FFTs in the child wait for.

After an operator of its own that it has shared out, torch's OpenMP threads spin for a while, and take the cores from
ours. Where that matters, set GOMP_SPINCOUNT=0 before Python starts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import torch


def native(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with Numba at its first call, without the GIL; cached on disk if possible.

    Of fastmath only `contract` is on: a product and a sum may become one instruction, which rounds once.
    A division by zero gives infinity or NaN, as in NumPy: raising an error would keep loops from being SIMD.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write a cache: a read-only installation
        return numba.njit(**options)(function)
    _survive_the_disk(compiled._cache)
    # Numba looks only at the function's own file to know whether what it has on disk is still true.
    file = compiled._cache._cache_file
    file._source_stamp = (file._source_stamp, _source_of_all(_folders(function)))
    return compiled


def _survive_the_disk(cache: Any) -> None:
    """Damaged files are as good as none, and where the disk is full nothing is kept: a kernel is compiled then."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # whatever unpickling half a file raises
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


def _folders(function: Callable[..., Any]) -> frozenset[Path]:
    """Of the function's file, and of the modules of kernels that its own imports functions from, and these in turn."""
    waiting, seen = [function.__module__], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in sys.modules:
            continue
        seen.add(module)
        for value in list(vars(sys.modules[module]).values()):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home.startswith(f"{__package__}."):
                waiting.append(home)
    files = [
        function.__code__.co_filename,
        *(getattr(sys.modules[module], "__file__", None) for module in seen),
    ]
    return frozenset(Path(file).parent for file in files if file)


@functools.cache
def _source_of_all(folders: frozenset[Path]) -> str:
    """A digest of all that a kernel may be compiled from: these folders, and the files beside this."""
    files = {path for folder in folders | {Path(__file__).parent} for path in folder.glob("*.py")}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def run(kernel: Callable[..., Any], jobs: Iterable[tuple]) -> None:
    """Call `kernel(*job)` for every job, on as many threads as `torch.get_num_threads()` says now.

    The calling thread takes part, so with one thread nothing is handed over at all. Threads take
    the next job when they are done with one. The first error is raised when all threads are idle.

    Args:
        kernel: a `@native` function that writes into its arguments; no two jobs write to one place.
        jobs: argument tuples.
    """
    waiting = deque(jobs)

    def work() -> None:
        while waiting:
            try:
                job = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            kernel(*job)

    helpers = [_executor().submit(work) for _ in range(min(torch.get_num_threads(), len(waiting)) - 1)]
    try:
        work()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
        wait(started)
    for helper in started:
        helper.result()


_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ssmcourse")
        return _pool


def _forget_pool() -> None:
    """In a forked child the pool's threads do not exist, and the lock may be held by one of them."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
