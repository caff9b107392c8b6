"""What torch may ask of any operator: compile it, transform it, call it from threads and forks, hand it any view."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import OPERATORS, Operator, every_operator
from operator_table import Inputs, among_nans, random
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch

B, L = 2, 5


def leaves(op: Operator, dtype: torch.dtype = torch.float64, b: int = B, l: int = L) -> Inputs:
    return {name: t.detach().requires_grad_() for name, t in op.make(dtype, b, l).items()}


def weighed(results: tuple[Tensor, ...]) -> Tensor:
    """A number that depends on every element of every result."""
    total = torch.zeros((), dtype=torch.float64)
    for i, r in enumerate(results):
        weight = random(r.shape, r.dtype, seed=40 + i)
        total = total + (r * weight).real.sum().double()
    return total


def assert_same(got, expected, op: Operator, what: str = "") -> None:
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        problem = mismatch(g, e, terms=op.terms)
        assert problem is None, f"{what} {i}: {problem}"


def compiled_backends(op: Operator) -> list[str]:
    if not op.takes_a_backend():
        return []
    return [name for name in backends(op.name.rpartition(".")[2]) if name == "cpu"]


@every_operator()
def test_derivatives(op):
    inputs = leaves(op)
    for backend in [*compiled_backends(op), "reference"] if op.takes_a_backend() else [None]:
        options = {"backend": backend} if backend else {}

        def call(*tensors, options=options):
            return op(dict(zip(inputs, tensors, strict=True)), **options)

        assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=backend == "reference")


class Recorder(TorchDispatchMode):
    """Notes the calls of our own operators, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ssmcourse":
            detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
            self.calls.append((function, tuple(detached)))
        return function(*args, **kwargs or {})


@every_operator(lambda op: op.label in ("", "complex"))
def test_opcheck(op):
    """torch's own examination of schema, fake tensors and autograd, of every operator of ours that ran."""
    if not compiled_backends(op):
        pytest.skip("written in torch's operators")
    inputs = leaves(op, torch.float32)
    with Recorder() as seen:
        torch.autograd.grad(weighed(op(inputs, backend="cpu")), list(inputs.values()))
    assert len({function for function, _ in seen.calls}) >= 2, "an operator and its gradient"
    for function, args in seen.calls:
        needs = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        given = args if "gradient" in str(function) else tuple(needs)
        torch.library.opcheck(function, given, test_utils=("test_schema", "test_faketensor"))
    function, args = seen.calls[0]
    torch.library.opcheck(
        function, args, test_utils=("test_autograd_registration", "test_aot_dispatch_static")
    )


@every_operator(lambda op: op.label in ("", "complex"))
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(op, compiler):
    torch.compiler.reset()
    inputs = leaves(op, torch.float32)
    function, options = op.function, op.options

    def loss(inputs):
        results = function(**inputs, **options)
        results = results if isinstance(results, tuple) else (results,)
        return sum(r.abs().sin().sum() for r in results)

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    got = torch.autograd.grad(compiled(inputs), list(inputs.values()))
    assert_same(got, torch.autograd.grad(loss(inputs), list(inputs.values())), op, "gradient")


@every_operator(lambda op: "seq_idx" in op.keywords() and op.label == "")
def test_packed_sequences_with_their_states_compile(op):
    """How many states there are depends on the data, which torch must be told that it may look at."""
    torch.compiler.reset()
    inputs = op.make(torch.float32, B, L)
    marks = torch.tensor([[0, 0, 1, 1, 1], [4, 4, 2, 2, 4]])
    function, options = op.function, op.options | {"seq_idx": marks}
    with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda inputs: function(**inputs, **options), fullgraph=True, backend="eager"
        )
        got = compiled(inputs)
    assert len(got[1]) == 5
    assert_same(got, function(**inputs, **options), op)


@every_operator()
def test_autocast_changes_nothing(op):
    inputs = op.make(torch.float32, B, L)
    plain = op(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = op(inputs)
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@every_operator()
def test_functional_transforms_agree_with_autograd(op):
    inputs = op.make(torch.float64, B, L)
    first = next(iter(inputs))
    leaf = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    expected = torch.autograd.grad(weighed(op(leaf)), leaf[first])[0]

    def loss(tensor):
        return weighed(op(inputs | {first: tensor}))

    assert_same([torch.func.grad(loss)(inputs[first])], [expected], op, "torch.func.grad")
    tangent = random(inputs[first].shape, inputs[first].dtype, seed=50)
    along = torch.func.jvp(loss, (inputs[first],), (tangent,))[1]
    assert_same([along], [(expected.conj() * tangent).real.sum()], op, "torch.func.jvp")
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[first], tangent)
        slope = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
    assert slope is not None, "forward mode: the tangent was dropped"
    assert_same([slope], [(expected.conj() * tangent).real.sum()], op, "forward mode")


@every_operator()
def test_vmap_is_a_loop(op):
    inputs = op.make(torch.float64, B, L)
    first = next(iter(inputs))
    several = torch.stack([inputs[first], 0.9 * inputs[first], 0.8 * inputs[first]], 1)
    mapped = torch.func.vmap(lambda t: op(inputs | {first: t}), in_dims=1)(several)
    for i in range(3):
        assert_same([m[i] for m in mapped], op(inputs | {first: several[:, i]}), op, "vmap")


@every_operator()
def test_a_compiled_backend_says_what_it_cannot_do(op):
    if not compiled_backends(op):
        pytest.skip("written in torch's operators")
    inputs = leaves(op)
    with pytest.raises(ValueError, match=r"^backend: got 'cpu', which torch\.func"):
        torch.func.grad(lambda t: weighed(op(inputs | {next(iter(inputs)): t}, backend="cpu")))(
            next(iter(inputs.values()))
        )
    gradients = torch.autograd.grad(
        weighed(op(inputs, backend="cpu")), list(inputs.values()), create_graph=True
    )
    if op.second_derivatives:
        weighed(gradients).backward()
        return
    with pytest.raises(RuntimeError, match="backend='reference'"):
        weighed(gradients).backward()


@every_operator()
def test_second_derivatives_of_the_reference(op):
    options = {"backend": "reference"} if op.takes_a_backend() else {}
    inputs = leaves(op, b=1, l=3)

    def call(*tensors):
        return op(dict(zip(inputs, tensors, strict=True)), **options)

    assert torch.autograd.gradgradcheck(call, tuple(inputs.values()), fast_mode=True)


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


@every_operator()
@pytest.mark.parametrize("view", [among_nans, transposed], ids=lambda view: view.__name__)
def test_a_view_is_what_it_shows(op, view):
    inputs = op.make(torch.float64, B, L)
    views = {name: view(t) if t.ndim else t for name, t in inputs.items()}
    assert_same(op(views), op({name: t.contiguous() for name, t in inputs.items()}), op)


@every_operator()
def test_an_expanded_tensor_is_what_it_shows(op):
    inputs = {name: t[:1].expand(t.shape) if t.ndim else t for name, t in leaves(op).items()}
    copies = {name: t.detach().contiguous().clone().requires_grad_() for name, t in inputs.items()}
    got, expected = op(inputs), op(copies)
    assert_same(got, expected, op)
    of_views = torch.autograd.grad(weighed(got), list(inputs.values()))
    assert_same(of_views, torch.autograd.grad(weighed(expected), list(copies.values())), op, "gradient")


@every_operator()
def test_conjugate_views_are_what_they_show(op):
    inputs = op.make(torch.float64, B, L)
    views = {
        name: t.conj().resolve_conj().conj() if t.is_complex() else -((-t).clone())
        for name, t in inputs.items()
    }
    views = {name: torch._neg_view(-t) if not t.is_complex() else t for name, t in views.items()}
    assert_same(op(views), op(inputs), op)


def with_a_length(dtype: torch.dtype) -> list[Any]:
    """Half types take a compilation more for every label."""
    return [
        pytest.param(
            op,
            dtype,
            marks=[pytest.mark.slow] if op.label and dtype == torch.bfloat16 else [],
            id=f"{op} {dtype}",
        )
        for op in OPERATORS
        if op.has_length
    ]


@pytest.mark.parametrize(("op", "dtype"), [*with_a_length(torch.float32), *with_a_length(torch.bfloat16)])
@pytest.mark.parametrize(("b", "l"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_in_nothing_out(op, b, l, dtype):
    """A batch of 0, or a length of 0: empty results, final states that are the initial ones, gradients of 0."""
    inputs = leaves(op, dtype, b, l)
    results = op(inputs)
    full = op(op.make(dtype, 2, 5))
    assert [r.dtype for r in results] == [r.dtype for r in full]
    assert results[0].numel() == 0
    gradients = torch.autograd.grad(weighed(results), list(inputs.values()), allow_unused=True)
    for (name, t), g in zip(inputs.items(), gradients, strict=True):
        assert g is None or (g.shape == t.shape and g.isfinite().all()), name
    if "initial_state" in inputs and len(results) == 2 and l == 0:
        assert torch.equal(results[1], inputs["initial_state"])


def system_threads() -> set[int]:
    """The threads of this process as the system numbers them, OpenMP's too; Linux only."""
    tasks = Path("/proc/self/task")
    return {int(task.name) for task in tasks.iterdir()} if tasks.is_dir() else set()


def wait_for_the_end_of_threads_since(before: set[int]) -> None:
    """Python joins a thread when its last line has run; what the system still does of it may hold a lock.

    MKL takes the lock of its allocator when a thread that used it ends. A process forked in that moment
    waits for it forever at its next FFT, whoever asks for one.
    """
    deadline = time.monotonic() + 30
    while system_threads() - before - {thread.native_id for thread in threading.enumerate()}:
        assert time.monotonic() < deadline, "threads that the operator started do not end"
        time.sleep(0.001)


def exit_status(child: int, seconds: float = 120) -> int:
    """What a forked child ended with; one that hangs is killed, and does not outlive its test."""
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.005)
    return ended[1]


@every_operator(lambda op: op.label in ("", "complex"))
def test_threads_and_forks(op):
    """Four Python threads at once, each on four threads of ours, and then a forked child."""
    inputs = op.make(torch.float32, 3, 70)
    expected = op(inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    alive = system_threads()  # three of them torch has just started, for a pool that it keeps
    try:
        start = threading.Barrier(4)

        def one(_):
            start.wait()
            return op(inputs)

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(one, range(4)))
    finally:
        torch.set_num_threads(before)
    wait_for_the_end_of_threads_since(alive)
    for got in results:
        assert_same(got, expected, op, "thread")
    if not hasattr(os, "fork"):
        return
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        got = op(inputs)
        same = all(mismatch(g, e, terms=op.terms) is None for g, e in zip(got, expected, strict=True))
        os._exit(0 if same else 1)
    assert exit_status(child) == 0
