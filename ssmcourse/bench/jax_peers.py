"""The rivals written in JAX, for those who have it; they are timed jitted, time first.

Every function gets the module `jax` first. Its arrays are (l, b, ...).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ssmcourse.bench.peers import _then, peer

jax_peer = functools.partial(peer, package="jax", module="jax", swap=(0, 1), framework="jax")


def jax_scan(operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a lax.scan twice: on arrays with time first, as it likes them, and on arrays that lie as ours do.

    The second turns them itself, as the layers around a scan would have to; that is in its time.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        def batch_first(jax: Any, **given: Any) -> Any:
            def turned(array: Any) -> Any:
                return array.swapaxes(0, 1) if getattr(array, "ndim", 0) > 2 else array

            return turned(function(jax, **{name: turned(array) for name, array in given.items()}))

        jax_peer(operator, "jax lax.scan, batch first", swap=None)(batch_first)
        return jax_peer(operator, "jax lax.scan")(function)

    return enter


@jax_scan("linear_scan")
def _scan(jax: Any, a: Any, b: Any) -> Any:
    def step(h: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
        h = now[0] * h + now[1]
        return h, h

    return jax.lax.scan(step, jax.numpy.zeros_like(b[0]), (a, b))[1]


@jax_peer("linear_scan", "jax associative_scan")
def _associative(jax: Any, a: Any, b: Any) -> Any:
    return jax.lax.associative_scan(_then, (a, b))[1]


@jax_scan("selective_scan")
def _selective(jax: Any, x: Any, dt: Any, A: Any, B: Any, C: Any) -> Any:
    jnp = jax.numpy

    def step(h: Any, now: tuple[Any, ...]) -> tuple[Any, Any]:
        x_t, dt_t, B_t, C_t = now
        h = jnp.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t[:, None]
        return h, jnp.einsum("bdn,bn->bd", h, C_t)

    start = jnp.zeros((x.shape[1], *A.shape), x.dtype)
    return jax.lax.scan(step, start, (x, dt, B, C))[1]


@jax_peer("selective_scan", "jax associative_scan")
def _selective_associative(jax: Any, x: Any, dt: Any, A: Any, B: Any, C: Any) -> Any:
    jnp = jax.numpy
    gates, inputs = jnp.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None]
    return jnp.einsum("lbdn,lbn->lbd", jax.lax.associative_scan(_then, (gates, inputs))[1], C)


@jax_scan("ssd")
def _ssd(jax: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, *, chunk_size: int) -> Any:
    jnp = jax.numpy

    def step(state: Any, now: tuple[Any, ...]) -> tuple[Any, Any]:
        x_t, dt_t, B_t, C_t = now
        decay = jnp.exp(dt_t * A)[..., None, None]
        state = decay * state + (dt_t[..., None] * x_t)[..., None] * B_t[:, :, None]
        return state, jnp.einsum("bhpn,bn->bhp", state, C_t[:, 0])

    start = jnp.zeros((*x.shape[1:], B.shape[-1]), x.dtype)
    return jax.lax.scan(step, start, (x, dt, B, C))[1]


@jax_scan("linear_attention")
def _linear_attention(jax: Any, q: Any, k: Any, v: Any) -> Any:
    jnp = jax.numpy

    def step(carried: tuple[Any, Any], now: tuple[Any, ...]) -> tuple[Any, Any]:
        q_t, k_t, v_t = now
        state, total = carried[0] + k_t[..., None] * v_t[..., None, :], carried[1] + k_t
        return (state, total), jnp.einsum("bhn,bhnp->bhp", q_t, state) / (q_t * total).sum(-1, keepdims=True)

    start = jnp.zeros((*k.shape[1:], v.shape[-1]), k.dtype), jnp.zeros_like(k[0])
    return jax.lax.scan(step, start, (q, k, v))[1]


@jax_peer("causal_conv1d", "jax convolution")
def _conv(jax: Any, x: Any, weight: Any) -> Any:
    d, w = weight.shape
    return jax.lax.conv_general_dilated(
        x,
        weight.T[:, None],
        (1,),
        [(w - 1, 0)],
        dimension_numbers=("WNC", "WIO", "WNC"),
        feature_group_count=d,
    )


@jax_peer("causal_conv1d", "jax, shifted copies")
def _shifted(jax: Any, x: Any, weight: Any) -> Any:
    l, w = x.shape[0], weight.shape[1]
    padded = jax.numpy.pad(x, ((w - 1, 0), (0, 0), (0, 0)))
    return sum(padded[k : k + l] * weight[:, k] for k in range(w))
