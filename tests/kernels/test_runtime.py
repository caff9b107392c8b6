"""What runs here, asked in fresh processes: the answer depends on what was imported and set before."""

from __future__ import annotations

import importlib
import os
import warnings

import fresh
import numpy as np
import pytest
import torch

import ssmcourse
from ssmcourse.kernels import runtime, self_test
from ssmcourse.scan import linear_scan

SWITCHES = ("TRITON_INTERPRET", "NUMBA_ENABLE_CUDASIM")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
with_triton = pytest.mark.skipif(runtime.triton_mode() == "absent", reason="triton does not run here")


def python(program: str, **switches: str) -> str:
    """The output of a fresh process; the switches are as given, else not set."""
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES} | switches
    done = fresh.run(program, env)
    assert done.status == 0, done.err
    return done.out.strip()


def test_importing_it_imports_neither_library():
    program = """
import os, sys
import ssmcourse.scan, ssmcourse.kernels.runtime
print(sorted({"triton", "numba", "numba.cuda"} & set(sys.modules)))
print(os.environ.get("TRITON_INTERPRET"), os.environ.get("NUMBA_ENABLE_CUDASIM"))
"""
    unset = "1 1" if not torch.cuda.is_available() else "None None"
    assert python(program) == f"[]\n{unset}"


@no_gpu
@with_triton
def test_without_a_gpu():
    program = """
import ssmcourse.scan  # noqa: F401  (registers linear_scan)
from ssmcourse.kernels import runtime
print(runtime.device(), runtime.has_cuda(), runtime.triton_mode(), runtime.cuda_mode())
from ssmcourse.scan import backends
print(backends("linear_scan"))
"""
    expected = "cpu False interpreted simulated\n['cpu', 'reference', 'triton', 'numba_cuda']"
    assert python("import numba\n" + program) == expected  # numba has read its settings already


@no_gpu
@pytest.mark.parametrize(
    "module", ["ssmcourse.kernels.sanitizer", "ssmcourse.kernels.linear_scan.numba_cuda"]
)
def test_kernels_are_simulated_though_numba_was_there_first(module):
    """numba has read its settings by then, and numba.cuda would be imported for a GPU."""
    program = f"""
import numba
import {module}
from ssmcourse.kernels import runtime
print(runtime.cuda_mode())
"""
    assert python(program) == "simulated"


@no_gpu
def test_a_missing_backend_says_why_and_what_there_is():
    program = """
import torch, {before}
from ssmcourse.scan import backends, linear_scan
print(backends("linear_scan"))
for backend in ("triton", "numba_cuda"):
    try:
        linear_scan(torch.ones(1, 2), torch.ones(1, 2), backend=backend)
    except ValueError as error:
        print(error)
"""
    off = python(program.format(before="sys"), TRITON_INTERPRET="0", NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert off[0] == "['cpu', 'reference']"
    assert "backend: got 'triton', which does not run here" in off[1]
    assert "linear_scan has here: auto, cpu, reference" in off[1]
    assert "NUMBA_ENABLE_CUDASIM is switched off" in off[2]
    if runtime.triton_mode() != "absent":
        early = python(
            program.format(before="triton.language, numba.cuda"), NUMBA_ENABLE_CUDASIM="0"
        ).splitlines()
        assert "triton was imported before ssmcourse: restart Python" in early[1]


def test_without_triton_and_numba_cuda():
    """macOS and Windows in short: the two are not there, and everything else works."""
    program = """
import sys
sys.modules["triton"] = None
sys.modules["numba.cuda"] = None
import torch
import ssmcourse.scan  # noqa: F401  (registers linear_scan)
from ssmcourse.kernels import runtime
from ssmcourse.scan import backends, linear_scan
print(runtime.triton_mode(), runtime.cuda_mode(), backends("linear_scan"))
print(linear_scan(torch.full((1, 3), 0.5), torch.ones(1, 3)).tolist())
try:
    linear_scan(torch.ones(1, 2), torch.ones(1, 2), backend="triton")
except ValueError as error:
    print(error)
"""
    first, second, third = python(program).splitlines()
    assert first == "absent absent ['cpu', 'reference']"
    assert second == "[[1.0, 1.5, 1.75]]"
    assert "triton is not installed; it has no wheels for macOS and Windows" in third


def test_without_numba_the_reference_is_left():
    program = """
import sys
sys.modules["numba"] = None
import torch
from ssmcourse.scan import backends, linear_scan
print([b for b in backends("linear_scan") if b != "triton"])
print(linear_scan(torch.full((1, 3), 0.5), torch.ones(1, 3)).tolist())
"""
    assert python(program) == "['reference']\n[[1.0, 1.5, 1.75]]"


def test_a_backend_for_another_device_is_refused():
    # no machine here has such a device; the reference runs on any
    assert runtime.choose("linear_scan", "auto", "meta") is runtime.choose("linear_scan", "reference", "cpu")
    with pytest.raises(ValueError, match="backend: got 'cpu', which does not take tensors on 'meta'"):
        runtime.choose("linear_scan", "cpu", "meta")


def test_a_backend_that_cannot_take_the_arguments_is_passed_by(monkeypatch):
    """As on a GPU, where Triton would be the best for a real A, and for a complex one there is the reference."""
    assert callable(ssmcourse.selective_scan)  # it is registered now
    monkeypatch.setitem(runtime._LIBRARY, "triton", lambda: runtime._Found("compiled"))
    monkeypatch.setattr(runtime, "_why_it_fails", lambda backend: "")
    assert runtime._load("selective_scan", "auto", "cuda") == "triton"
    assert runtime._load("selective_scan", "auto", "cuda", {"triton": "complex A"}) == "reference"
    with pytest.raises(
        ValueError,
        match=r"got 'triton', which does not take complex A\. selective_scan has here: auto, cpu, reference$",
    ):
        runtime.choose("selective_scan", "triton", "cuda", {"triton": "complex A"})


def test_every_operator_is_a_public_function():
    homes = (ssmcourse, ssmcourse.attention)
    public = {
        name for home in homes for name in dir(home) if callable(getattr(home, name))
    }  # and all are registered
    assert {"selective_scan", "ssd_state_update"} <= set(runtime._OPERATORS) <= public


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_scan_of_complex_numbers_compiles_in_one_graph(backend):
    torch.compiler.reset()
    x, dt = torch.rand(1, 5, 3), torch.rand(1, 5, 3)
    A, B = torch.polar(torch.rand(3, 2), torch.rand(3, 2)), torch.rand(1, 5, 2) + 1j

    def call(A, B):
        return ssmcourse.selective_scan(x, dt, A, B, B, backend=backend)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for given in ((A, B), (-A.real, B.real)):  # the same compiled function, chosen anew
        assert torch.equal(compiled(*given), call(*given))


def test_unknown_names():
    with pytest.raises(ValueError, match="backend: got 'gpu', which is not one of its names"):
        runtime.choose("linear_scan", "gpu", "cpu")
    for what in (["cpu"], {"cpu"}, None, 3, np.array(["cpu", "reference"]), torch.zeros(3)):
        with pytest.raises(
            ValueError, match=r"backend: got \w+, expected a name\. linear_scan has here: auto, cpu"
        ):
            runtime.choose("linear_scan", what, "cpu")
    with pytest.raises(ValueError, match=r"operator: got 'linear', expected one of .*linear_scan"):
        runtime.backends("linear")


def test_the_order_is_best_first(monkeypatch):
    """On a machine with a GPU: what is compiled for it, then the CPU, then the definition."""
    monkeypatch.setitem(runtime._LIBRARY, "triton", lambda: runtime._Found("compiled"))
    monkeypatch.setitem(runtime._LIBRARY, "numba_cuda", lambda: runtime._Found("real"))
    assert runtime.backends("linear_scan") == ["triton", "numba_cuda", "cpu", "reference"]
    with pytest.raises(ValueError, match="'triton', which does not take tensors on 'cpu'"):
        runtime.choose("linear_scan", "triton", "cpu")
    assert runtime._load("linear_scan", "auto", "cpu") == "cpu"


def test_a_compiled_function_may_be_the_first_to_call_two_operators():
    program = """
import torch
from ssmcourse import causal_conv1d, linear_scan
def f(x, w):
    return linear_scan(causal_conv1d(x, w), x)
x, w = torch.rand(1, 5, 3), torch.rand(3, 2)
got = torch.compile(f, fullgraph=True, backend="eager")(x, w)
print(torch.equal(got, f(x, w)))
"""
    assert python(program).splitlines()[-1] == "True"


# --- The self-test of what runs on a GPU ----------------------------------------------------------


@pytest.mark.parametrize("backend", ["triton", "numba_cuda"])
def test_the_self_test_passes_where_they_run_without_a_gpu(backend):
    if runtime.why_absent(backend):
        pytest.skip(runtime.why_absent(backend))
    assert self_test.why_not(backend, "cpu") == ""


@with_triton
def test_the_self_test_names_what_is_wrong(monkeypatch):
    module = importlib.import_module("ssmcourse.kernels.linear_scan.triton")
    right = module.scan
    monkeypatch.setattr(module, "scan", lambda a, b, first, reverse: right(a, b, first, False))
    assert self_test.why_not("triton", "cpu").startswith("its scan backwards was wrong by ")
    monkeypatch.setattr(module, "scan", lambda *given: given[9])
    assert self_test.why_not("triton", "cpu") == "its self-test stopped: IndexError: tuple index out of range"


@pytest.fixture
def gpu_that_fails(monkeypatch):
    """As if Triton compiled for a GPU that takes our tensors, and computed nonsense there."""
    monkeypatch.setitem(runtime._LIBRARY, "triton", lambda: runtime._Found("compiled"))
    monkeypatch.setitem(runtime._PLACE, "compiled", (0, "cpu"))
    monkeypatch.setattr(self_test, "why_not", lambda backend, device: f"{backend} on {device} is wrong")
    monkeypatch.setattr(runtime, "_FAILED", {})
    runtime._why_it_fails.cache_clear()
    yield
    runtime._why_it_fails.cache_clear()


@pytest.mark.usefixtures("gpu_that_fails")
def test_a_backend_that_fails_is_left_out_with_one_warning():
    a = torch.full((1, 4, 2), 0.5)
    with pytest.warns(
        RuntimeWarning, match="backend 'triton' is left out from now on: triton on cuda is wrong"
    ):
        first = linear_scan(a, a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(linear_scan(a, a), first)
    assert "triton" not in runtime.backends("linear_scan")
    with pytest.raises(ValueError, match="got 'triton', which does not run here: triton on cuda is wrong"):
        linear_scan(a, a, backend="triton")


@pytest.mark.usefixtures("gpu_that_fails")
def test_asked_for_by_name_it_is_an_error():
    a = torch.full((1, 4, 2), 0.5)
    with (
        pytest.warns(RuntimeWarning, match="is left out"),
        pytest.raises(ValueError, match="got 'triton', which does not run here: triton on cuda is wrong"),
    ):
        linear_scan(a, a, backend="triton")
