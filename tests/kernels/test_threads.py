"""Kernels on our thread pool are right when called at once, in a forked child, and after a fork."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import fresh
import pytest
import torch

from ssmcourse.kernels import threads
from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Three for our pool. torch itself keeps to one: its own OpenMP threads do hang in a forked child."""
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(seed: int, shape=(6, 1000, 30)) -> str:
    """What is wrong with a scan that is big enough to be shared out; nothing if all is well."""
    a = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaf = a.clone().requires_grad_()
    h = linear_scan(leaf, a + 1, backend="cpu")
    h.sum().backward()
    expected = torch.stack(list(_steps(a, a + 1)), 1)
    return str(mismatch(h, expected, terms=10) or "") or ("" if leaf.grad.isfinite().all() else "gradient")


def _steps(a, b):
    h = torch.zeros_like(b[:, 0])
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        yield h


def test_every_job_runs_once_on_as_many_threads_as_torch_uses(monkeypatch):
    seen: list[tuple[int, str]] = []
    for allowed in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda allowed=allowed: allowed)
        seen.clear()
        threads.run(
            lambda i: (time.sleep(0.01), seen.append((i, threading.current_thread().name))),
            [(i,) for i in range(12)],
        )
        assert sorted(i for i, _ in seen) == list(range(12))
        assert 1 <= len({name for _, name in seen}) <= allowed
    assert threading.current_thread().name in {name for _, name in seen}


def test_an_error_comes_out_when_all_are_done():
    done = []

    def job(i):
        if i == 1:
            raise ValueError("job 1")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(ValueError, match="job 1"):
        threads.run(job, [(i,) for i in range(6)])
    assert set(done) == {0, 2, 3, 4, 5}


def test_several_python_threads_at_once():
    found: dict[int, str] = {}
    callers = [threading.Thread(target=lambda i=i: found.update({i: problem(i)})) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == dict.fromkeys(range(6), "")


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_child():
    assert problem(0) == ""  # the pool is there, its threads asleep
    assert _in_children(2) == ["", ""]


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forking_while_the_pool_is_at_work():
    stop, found = threading.Event(), []

    def busy():
        while not stop.is_set():
            found.append(problem(1))

    workers = [threading.Thread(target=busy) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert [_in_children(1) for _ in range(4)] == [[""]] * 4
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    assert set(found) == {""}


def _in_children(n: int) -> list[str]:
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    children = [fork.Process(target=lambda i=i: answers.put(problem(i))) for i in range(n)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * n, "a child died or hangs"
    return [answers.get() for _ in children]


class _Scans(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> str:
        return problem(i)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_the_workers_of_a_dataloader():
    assert problem(0) == ""
    loader = torch.utils.data.DataLoader(_Scans(), num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [found for batch in loader for found in batch] == [""] * 4


def test_a_place_that_cannot_be_written_to_needs_no_cache(tmp_path: Path):
    """As in a read-only installation: compiled in memory, with no complaint."""
    module = tmp_path / "read_only.py"
    module.write_text(
        "from ssmcourse.kernels.threads import native\n@native\ndef double(x):\n    return 2 * x\nprint(double(21))\n"
    )
    env = os.environ | {"NUMBA_CACHE_DIR": str(module / "not_a_folder")}
    done = fresh.run("import read_only", env, tmp_path)
    assert (done.out, done.status, done.err) == ("42\n", 0, "")


DOUBLE = """
from ssmcourse.kernels.threads import native
@native
def double(x): return 2 * x
print(double(21), sum(double.stats.cache_hits.values()))
"""


def test_a_kernel_is_as_old_as_the_youngest_file_that_it_is_compiled_from():
    """Of other folders too, at second hand: a layer's step calls the state's, which uses the selective scan's."""
    from ssmcourse.kernels.layer_step import cpu

    folders = {folder.name for folder in threads._folders(cpu._mamba.py_func)}
    assert {"layer_step", "state_update", "causal_conv1d", "selective_scan"} <= folders
    assert not folders & {"wkv", "legs", "ssd"}


def test_a_damaged_cache_is_made_anew(tmp_path):
    """As after a crash of the system: Numba alone would raise an EOFError at every call from then on."""
    (tmp_path / "kernel.py").write_text(DOUBLE)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    seen = [fresh.run("import kernel", env, tmp_path)]
    for pattern in ("*.nbi", "*.nbc"):
        for file in (tmp_path / "cache").rglob(pattern):
            file.write_bytes(file.read_bytes()[:5])
        seen += [fresh.run("import kernel", env, tmp_path) for _ in range(2)]
    assert [done.out for done in seen] == ["42 0\n", "42 0\n", "42 1\n", "42 0\n", "42 1\n"], seen


@forks
def test_a_full_disk_needs_no_cache(tmp_path):
    """A limit on the size of files stands for it: writing them fails."""
    (tmp_path / "kernel.py").write_text(DOUBLE)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); "
    assert fresh.run(limit + "import kernel", env, tmp_path) == (0, "42 0\n", "")


def test_a_change_in_a_file_beside_it_compiles_a_kernel_again(tmp_path):
    """Numba alone would load the old machine code: it looks at the kernel's own file only."""
    (tmp_path / "kernel.py").write_text(
        "from helper import add\n"
        "from ssmcourse.kernels.threads import native\n"
        "@native\n"
        "def f(x): return add(x)\n"
        "print(f(1), sum(f.stats.cache_hits.values()))\n"
    )
    seen = []
    for added in (1, 1, 10):
        (tmp_path / "helper.py").write_text(
            f"import numba\nadd = numba.njit(lambda x: x + {added})\n" + "#" * added
        )
        done = fresh.run("import kernel", {**os.environ}, tmp_path)
        seen.append(done.out.strip())
    assert seen == ["2 0", "2 1", "11 0"], done.err
