"""Everyone who takes part, in one form: our backends and the peers, ready to be called."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmcourse.bench import jax_peers  # noqa: F401 - enters its peers
from ssmcourse.bench.operators import Inputs, Operator
from ssmcourse.bench.peers import PEERS, Peer
from ssmcourse.kernels import runtime

EMULATED = ("triton", "numba_cuda")  # on tensors of the CPU: an interpreter or a simulator, made for learning
READABLE_UP_TO = 1024  # steps
Function = Callable[..., Any]


def ours(op: Operator, l: int = 0) -> list[Peer]:
    """Our backends that run on the CPU as fast as they can, best first, as contestants.

    Those that are made to be read, and cost O(l^2), are left out of sequences longer than READABLE_UP_TO.
    """
    public = getattr(importlib.import_module(op.home), op.name)
    try:
        names = [
            name
            for name in runtime.backends(op.name)
            if name not in EMULATED
            and (name != "quadratic" or l <= READABLE_UP_TO)
            and runtime.device_type(name) in ("cpu", "any")
        ]
    except ValueError:  # no backends: one way to compute it
        return [Peer(op.name, "ours", lambda **given: public(**given, **op.ours))]

    def calling(backend: str) -> Function:
        return lambda **given: public(**given, **op.ours, backend=backend)

    return [Peer(op.name, f"ours, {name}", calling(name)) for name in names]


def rivals(op: Operator) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can be imported here, and those that cannot: name -> the package to install."""
    here, missing = [], {}
    for rival in (p for p in PEERS if p.operator == op.name):
        if _importable(rival.module):
            here.append(rival)
        else:
            missing[rival.name] = rival.package
    return here, missing


def _importable(module: str) -> bool:
    top = module.partition(".")[0]
    return not top or importlib.util.find_spec(top) is not None


@dataclass
class Entry:
    """A contestant with its arrays: `forward()` is one call, `both()` one with all gradients.

    `own(value)` is a result of `forward` or `both` as torch tensors that lie as ours do. `prepare(direction)`
    compiles what can be compiled without a call.
    """

    peer: Peer
    forward: Callable[[], Any]
    both: Callable[[], Any]
    own: Callable[[Any], Any]
    prepare: Callable[[str], Any] = lambda direction: None


def enter(peer: Peer, inputs: Inputs, options: dict[str, Any], weight: Tensor | None = None) -> Entry:
    """Bring the inputs into the form that a contestant likes.

    Args:
        peer: the contestant.
        inputs: named tensors, as our function takes them.
        options: keyword options of the call.
        weight: the gradient that arrives at the output; needed for `both` only.
    Raises:
        ImportError: its package is not whole.
    """
    function: Function = peer.function
    if peer.module:
        module, bare = importlib.import_module(peer.module), function
        function = lambda **given: bare(module, **given)  # noqa: E731
    prepare = _for_jax if peer.framework == "jax" else _for_torch
    return prepare(peer, function, inputs, options, weight)


def _swapped(tensor: Tensor, swap: tuple[int, int] | None) -> Tensor:
    """Only what has a time dimension is turned: parameters have two dimensions at most."""
    return tensor if swap is None or tensor.ndim < 3 else tensor.transpose(*swap).contiguous()


def _for_torch(
    peer: Peer, function: Function, inputs: Inputs, options: dict[str, Any], weight: Tensor | None
) -> Entry:
    given = {name: _swapped(t, peer.swap) for name, t in inputs.items()}
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    arriving = None if weight is None else _swapped(weight, peer.swap)

    def both() -> tuple[Tensor, dict[str, Tensor]]:
        y = function(**leaves, **options)
        gradients = torch.autograd.grad(y, list(leaves.values()), arriving)
        return y, dict(zip(leaves, gradients, strict=True))

    def own(value: Any) -> Any:
        if isinstance(value, tuple):
            return own(value[0]), {name: own(g) for name, g in value[1].items()}
        return _swapped(value.detach(), peer.swap)

    return Entry(peer, lambda: function(**given, **options), both, own)


def _for_jax(
    peer: Peer, function: Function, inputs: Inputs, options: dict[str, Any], weight: Tensor | None
) -> Entry:
    jax = importlib.import_module("jax")

    def array(tensor: Tensor) -> Any:
        return jax.numpy.asarray(_swapped(tensor, peer.swap).numpy())

    given = {name: array(t) for name, t in inputs.items()}
    arriving = None if weight is None else array(weight)

    def call(given: dict[str, Any]) -> Any:
        return function(**given, **options)

    def differentiated(given: dict[str, Any], arriving: Any) -> Any:
        y, pull = jax.vjp(call, given)
        return y, pull(arriving)[0]

    arguments = {"forward": (given,), "both": (given, arriving)}

    @functools.cache
    def compiled(direction: str) -> Callable[..., Any]:
        traced = jax.jit(call if direction == "forward" else differentiated)
        return traced.lower(*arguments[direction]).compile()

    def run(direction: str) -> Any:
        return jax.block_until_ready(compiled(direction)(*arguments[direction]))

    def own(value: Any) -> Any:
        if isinstance(value, tuple):
            return own(value[0]), {name: own(g) for name, g in value[1].items()}
        return _swapped(torch.from_numpy(np.array(value)), peer.swap)

    return Entry(peer, lambda: run("forward"), lambda: run("both"), own, compiled)
