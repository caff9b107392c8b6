"""Every backend of the linear scan against the dense matrix of its definition."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from operator_table import BACKENDS, DTYPES, LENGTHS, Case, among_nans, assert_agrees, need, random
from torch import Tensor

from ssmcourse.scan import linear_scan
from ssmcourse.tolerance import mismatch


def by_matrix(a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """h = M b + (a_t ... a_0) h_{-1}, with M[t, s] = a_t ... a_{s+1} written down column by column."""
    a = a.expand(b.shape)
    if reverse:
        return by_matrix(a.flip(1), b.flip(1), initial_state).flip(1)
    l, ones = b.shape[1], torch.ones_like(b[:, :1])
    columns = [
        torch.cat([torch.zeros_like(b[:, :s]), torch.cat([ones, a[:, s + 1 :]], 1).cumprod(1)], 1)
        for s in range(l)
    ]
    h = sum(column * b[:, s : s + 1] for s, column in enumerate(columns))
    return h if initial_state is None else h + a.cumprod(1) * initial_state[:, None]


def gates(shape, dtype=torch.float64, seed=1) -> Tensor:
    """Gates of size up to 1.1 and of either sign: stable for most steps, not for all."""
    return (1.1 * torch.tanh(random(shape, torch.float64, seed=seed))).to(dtype) * (
        torch.polar(torch.ones(()), torch.tensor(0.7)).to(dtype) if dtype.is_complex else 1
    )


def case(
    name: str, shape, *, gate=None, dtype=torch.float64, initial=True, wrap=lambda t: t, **options
) -> Case:
    def make():
        inputs = {"a": wrap(gates(gate or shape, dtype)), "b": wrap(random(shape, dtype, seed=2))}
        if initial:
            inputs["initial_state"] = wrap(random((shape[0], *shape[2:]), dtype, seed=3))
        return inputs

    shared = 1 if gate is None else max(1, torch.Size(shape).numel() // torch.Size(gate).numel())
    return Case(name, make, terms=shape[1] * shared, options=options)


TABLE = [
    *(case(f"l={l}", (2, l, 6)) for l in LENGTHS),
    *(case(f"l={l} reverse", (2, l, 6), reverse=True) for l in LENGTHS),
    *(case(f"l={l} narrow", (2, l, 2), reverse=l % 2 == 0) for l in LENGTHS),  # its own kernel on the CPU
    *(case(f"{dtype}".removeprefix("torch."), (2, 19, 5), dtype=dtype) for dtype in DTYPES),
    case("complex reverse", (1, 17, 2), dtype=torch.complex128, reverse=True),
    case("complex column", (2, 18), dtype=torch.complex64),
    case("no initial state", (2, 17, 3), initial=False),
    case("no initial state, reverse", (2, 17, 3), initial=False, reverse=True),
    case("no trailing dimension", (3, 21)),
    case("two trailing dimensions", (2, 7, 2, 3)),
    case("more channels than a block", (1, 3, 37)),
    case("gate constant in time", (2, 18, 3), gate=(2, 1, 3)),
    case("gate of all rows", (2, 18, 3), gate=(1, 18, 3), reverse=True),
    case("gate of all channels", (2, 18, 3), gate=(2, 18, 1)),
    case("gate of a head", (2, 7, 2, 3), gate=(2, 7, 2, 1)),
    case("one gate", (2, 18, 3), gate=(1, 1, 1)),
    case("one gate, one channel", (2, 18), gate=(1, 1), reverse=True),
    case("not contiguous", (2, 17, 3), wrap=among_nans),
    case("transposed", (2, 9, 3), wrap=lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend, row):
    need("linear_scan", backend)
    assert_agrees(
        functools.partial(linear_scan, backend=backend),
        by_matrix,
        row.make(),
        terms=row.terms,
        **row.options,
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_that_pass_their_state_on_are_the_whole(backend, reverse):
    need("linear_scan", backend)
    a, b = gates((2, 37, 3)), random((2, 37, 3), seed=5)
    whole = linear_scan(a, b, reverse=reverse, backend=backend)
    for size in (1, 16, 20, 36):
        starts = range(0, 37, size)
        state, parts = torch.zeros(2, 3, dtype=b.dtype), {}
        for start in reversed(starts) if reverse else starts:
            part = slice(start, start + size)
            parts[start] = linear_scan(a[:, part], b[:, part], state, reverse=reverse, backend=backend)
            state = parts[start][:, 0 if reverse else -1]
        problem = mismatch(torch.cat([parts[start] for start in starts], 1), whole, terms=37)
        assert problem is None, f"chunks of {size}: {problem}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_forgets(backend):
    """A gate of 0 in a long decay: what came before leaves no trace, not even rounding."""
    need("linear_scan", backend)
    a, b = torch.full((1, 40, 2), 0.99), random((1, 40, 2), torch.float32, seed=6)
    a[:, 20] = 0
    b[:, :20] *= 1e20
    after = linear_scan(a, b, backend=backend)[:, 20:]
    problem = mismatch(after, by_matrix(a[:, 20:].double(), b[:, 20:].double()), terms=20)
    assert problem is None, str(problem)


# --- The rules of torch -------------------------------------------------------------------------


def small(dtype: torch.dtype, b: int = 2, l: int = 5, d: int = 3) -> list[Tensor]:
    shapes = [(b, l, d), (b, l, d), (b, d)]
    return [random(shape, dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("dtype", "reverse"), [(torch.float64, False), (torch.complex128, True)])
@pytest.mark.parametrize("backend", ["cpu", "numba_cuda"])
def test_first_and_second_derivatives(backend, dtype, reverse):
    need("linear_scan", backend)

    def scan(a, b, first):
        return linear_scan(a, b, first, reverse=reverse, backend=backend)

    size = (2, 5, 3) if backend == "cpu" else (1, 3, 2)  # the simulator is slow
    assert torch.autograd.gradcheck(scan, small(dtype, *size))
    assert torch.autograd.gradgradcheck(scan, small(dtype, *size))


@pytest.mark.parametrize(("dtype", "reverse"), [(torch.float32, False), (torch.complex128, True)])
@pytest.mark.parametrize("backend", ["cpu", "numba_cuda"])
def test_opcheck(backend, dtype, reverse):
    need("linear_scan", backend)
    a, b, first = small(dtype)
    linear_scan(a, b, backend=backend)  # registers the operator
    name = f"linear_scan_{backend}"
    torch.library.opcheck(getattr(torch.ops.ssmcourse, name).default, (a, b, first, reverse))
    shared = a[:1, :1].detach().expand(2, 5, 3)
    torch.library.opcheck(
        getattr(torch.ops.ssmcourse, name).default, (shared, b.mT.contiguous().mT, first, reverse)
    )
    if backend == "cpu":
        given = [t.detach() for t in (b, a, b, first)]
        torch.library.opcheck(torch.ops.ssmcourse.linear_scan_cpu_gradient.default, (*given, reverse))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("backend", ["auto", "reference", "numba_cuda"])
def test_compiles_without_a_graph_break(backend, compiler):
    need("linear_scan", "cpu" if backend == "auto" else backend)
    torch.compiler.reset()

    def loss(a, b, first):
        return linear_scan(a, b, first, reverse=True, backend=backend).sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    inputs = small(torch.float32)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for g, e in zip(got, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        assert mismatch(g, e, terms=5) is None


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "numba_cuda"])
def test_vmap_is_more_rows(backend):
    need("linear_scan", backend)
    a, b, first = random((2, 4, 6, 3), seed=1), random((2, 6, 3), seed=2), random((2, 3), seed=3)
    leaf = a.clone().requires_grad_()
    mapped = torch.func.vmap(
        lambda gate: linear_scan(gate, b, first, backend=backend), in_dims=1, out_dims=1
    )(leaf)
    mapped.sum().backward()
    single = [a[:, i].clone().requires_grad_() for i in range(4)]
    results = [linear_scan(s, b, first, backend="reference") for s in single]
    torch.stack(results, 1).sum().backward()
    assert mismatch(mapped, torch.stack(results, 1), terms=6) is None
    assert mismatch(leaf.grad, torch.stack([s.grad for s in single], 1), terms=6) is None


# --- Compiled for a GPU, on a machine without one -------------------------------------------------

TRITON_AHEAD_OF_TIME = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ssmcourse.kernels.linear_scan import triton as module

pointers = ("a_ptr", "b_ptr", "state_ptr", "h_ptr")
# An argument that is 1 becomes a constant, which takes other ways through the compiler.
for kernel, dtype, sizes, reverse in (
    (module.scan_kernel, "fp32", {}, True),
    (module.scan_kernel, "fp64", {"l": 1, "d": 1}, False),
    (module.complex_scan_kernel, "fp32", {}, False),
):
    constants = {"REVERSE": reverse, "ROW_SIDE": 0, "BLOCK_L": 64, "BLOCK_D": 32, **sizes}
    signature = {p: f"*{dtype}" for p in pointers} | {"l": "i32", "d": "i32"}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(compiled.asm["cubin"]) > 1000, (capability, kernel, dtype)
        assert compiled.metadata.shared <= 48 * 1024, "more shared memory than a block has by default"
print("compiled")
"""

CUDA_AHEAD_OF_TIME = """
from numba import cuda, types
from ssmcourse.kernels.linear_scan.numba_cuda import scan_kernel

for T in (types.float32, types.float64, types.complex64, types.complex128):
    signature = types.void(T[:, :, ::1], T[:, :, ::1], T[:, ::1], T[:, :, ::1], types.boolean)
    try:
        ptx, _ = cuda.compile_ptx(scan_kernel.py_func, signature, cc=(9, 0))
    except Exception as error:
        if "No such file" not in str(error):
            raise
        print("no compiler:", str(error).splitlines()[0])
        break
    assert "ld.global" in ptx and "st.global" in ptx, T
    assert T not in (types.float32, types.complex64) or ".f64" not in ptx, "computes in float64 unasked"
else:
    print("compiled")
"""


@pytest.mark.parametrize("backend", ["triton", "numba_cuda"])
def test_compiles_ahead_of_time(backend, tmp_path, monkeypatch):
    need("linear_scan", backend)
    program = TRITON_AHEAD_OF_TIME if backend == "triton" else CUDA_AHEAD_OF_TIME
    for name, value in {
        "TRITON_INTERPRET": "0",
        "NUMBA_ENABLE_CUDASIM": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if "no compiler" in done.stdout:
        pytest.skip(f"the extra [gpu] brings the CUDA toolkit; {done.stdout.strip()}")
    assert "compiled" in done.stdout
