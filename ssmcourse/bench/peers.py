"""The rivals written in torch: what one can install, and what the papers published.

A peer is a function of the operator's inputs and options. One that needs a package gets the imported module
first. `swap` names two dimensions that it likes the other way round: it is timed on arrays that lie as it
likes them. Peers from the literature are written anew here, after the source that each names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssmcourse.bench import loops


@dataclass(frozen=True)
class Peer:
    """A rival: which operator it computes, its name, what it needs, and how its arrays lie.

    `package` is what pip calls it (empty where torch is enough), `module` what Python imports. `framework`
    is "torch" or "jax". `quadratic`: its backward fills an array of the inputs' size, states included, at every step.
    """

    operator: str
    name: str
    function: Callable[..., Any]
    package: str = ""
    module: str = ""
    swap: tuple[int, int] | None = None
    framework: str = "torch"
    quadratic: bool = False


PEERS: list[Peer] = [
    Peer("linear_scan", "torch loop", loops.linear_scan),
    Peer("selective_scan", "torch loop", loops.selective_scan),
    Peer("ssd", "torch loop", loops.ssd),
    Peer("causal_conv1d", "torch, shifted copies", loops.causal_conv1d),
    Peer("linear_attention", "torch loop", loops.linear_attention),
    Peer("wkv4", "torch loop", loops.wkv4),
    Peer("selective_scan_matrix", "torch loop over rows", loops.selective_scan_matrix),
    Peer("s4_kernel", "torch, dense matrix powers", loops.s4_kernel),
    Peer("s4d_kernel", "torch loop", loops.s4d_kernel),
]


def peer(operator: str, name: str, **about: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the function below as a rival; `about` are the other fields of `Peer`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        PEERS.append(Peer(operator, name, function, **about))
        return function

    return enter


# --- Scans --------------------------------------------------------------------------------------


@peer("linear_scan", "mambapy", package="mambapy", module="mambapy.pscan")
def _mambapy_scan(mambapy: Any, a: Tensor, b: Tensor) -> Tensor:
    """Its Blelloch scan is over (b, l, d, n): two channel dimensions are made of the one."""
    n = next(n for n in (16, 8, 4, 2, 1) if b.shape[2] % n == 0)
    return mambapy.pscan(a.unflatten(2, (-1, n)), b.unflatten(2, (-1, n))).flatten(2)


@peer(
    "linear_scan",
    "accelerated-scan",
    package="accelerated-scan",
    module="accelerated_scan.ref",
    swap=(1, 2),
)
def _accelerated_scan(accelerated: Any, a: Tensor, b: Tensor) -> Tensor:
    return accelerated.scan(a, b)


def _then(first: tuple[Any, Any], second: tuple[Any, Any]) -> tuple[Any, Any]:
    return first[0] * second[0], second[0] * first[1] + second[1]


@peer("linear_scan", "torch associative_scan", module="torch._higher_order_ops.associative_scan")
def _torch_scan(torch_scan: Any, a: Tensor, b: Tensor) -> Tensor:
    return torch_scan.associative_scan(_then, (a, b), 1, combine_mode="generic")[1]


@peer("selective_scan", "torch associative_scan", module="torch._higher_order_ops.associative_scan")
def _torch_selective(torch_scan: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    gates, inputs = torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None]  # (b, l, d, n)
    states = torch_scan.associative_scan(_then, (gates, inputs), 1, combine_mode="generic")[1]
    return (states @ C[..., None])[..., 0]


@peer("selective_scan", "mambapy", package="mambapy", module="mambapy.mamba")
def _mambapy_selective(mambapy: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return mambapy.MambaBlock.selective_scan(None, x, dt, A, B, C, x.new_zeros(x.shape[2]))


@peer(
    "selective_scan",
    "transformers",
    package="transformers",
    module="transformers.models.mamba.modeling_mamba",
    swap=(1, 2),
    quadratic=True,
)
def _transformers_selective(
    transformers: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> Tensor:
    return transformers.mamba_selective_scan(x, dt, A, B, C)


# --- SSD and its relatives ----------------------------------------------------------------------


@peer("ssd", "fla naive chunk", package="flash-linear-attention", module="fla.ops.simple_gla.naive")
def _fla_chunk(
    fla: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int
) -> Tensor:
    q, k = (v.expand(-1, -1, x.shape[2], -1) for v in (C, B))
    return fla.naive_chunk_simple_gla(q, k, x * dt[..., None], dt * A, chunk_size=chunk_size, scale=1.0)[0]


@peer("ssd", "transformers", package="transformers", module="transformers.models.mamba2.modeling_mamba2")
def _transformers_ssd(
    transformers: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int
) -> Tensor:
    return transformers.mamba2_chunk_scan(x, dt, A, B, C, chunk_size)


def _segsum(log_a: Tensor) -> Tensor:
    """Sums over all segments, by masked cumulative sums: (..., l) to (..., l, l)."""
    l = log_a.shape[-1]
    keep = torch.ones(l, l, dtype=torch.bool).tril()
    sums = log_a[..., None].expand(*log_a.shape, l).masked_fill(~keep.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~keep, -torch.inf)


@peer("ssd", "minimal Mamba-2")
def _minimal_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int) -> Tensor:
    """Dao & Gu 2024, Listing 1 (as in the repositories mamba, ssd_minimal.py, and mamba2-minimal)."""
    l, spare = x.shape[1], -x.shape[1] % chunk_size
    x, log_a = x * dt[..., None], dt * A
    x, log_a, B, C = (functional.pad(v, [0, 0] * (v.ndim - 2) + [0, spare]) for v in (x, log_a, B, C))
    x, log_a, B, C = (v.unflatten(1, (-1, chunk_size)) for v in (x, log_a, B, C))  # (b, c, q, ...)
    log_a = log_a.permute(0, 3, 1, 2)  # (b, h, c, q)
    total = log_a.cumsum(-1)
    within = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, _segsum(log_a).exp(), x)
    to_end = (total[..., -1:] - total).exp()
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B.expand(*x.shape[:4], -1), to_end, x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    across = _segsum(functional.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
    before = torch.einsum("bclhn,bchpn,bhcl->bclhp", C.expand(*x.shape[:4], -1), states, total.exp())
    return (within + before).flatten(1, 2)[:, :l]


@peer(
    "linear_attention",
    "fla naive chunk",
    package="flash-linear-attention",
    module="fla.ops.linear_attn.naive",
)
def _fla_linear_attention(fla: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fla.naive_chunk_linear_attn(q, k, v, scale=1.0, normalize=True)


@peer("wkv4", "transformers", package="transformers", module="transformers.models.rwkv.modeling_rwkv")
def _transformers_wkv(transformers: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    return transformers.rwkv_linear_attention_cpu(w, u, k, v)[0]


# --- Convolution --------------------------------------------------------------------------------


@peer("causal_conv1d", "torch conv1d", swap=(1, 2))
def _torch_conv(x: Tensor, weight: Tensor) -> Tensor:
    """What transformers and mambapy call, too."""
    d, w = weight.shape
    return functional.conv1d(x, weight[:, None], padding=w - 1, groups=d)[..., : x.shape[2]]


# --- Kernels of S4 ------------------------------------------------------------------------------


def _cauchy_by_broadcasting(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_n v_n / (z - w_n) and the conjugate half: v (h, n), z (h, l), w (h, n) to (h, l)."""
    v, w = torch.cat([v, v.conj()], 1), torch.cat([w, w.conj()], 1)
    return (v[:, None] / (z[..., None] - w[:, None])).sum(-1)


def _cauchy_by_keops(keops: Any, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    z_i = keops.LazyTensor(z[:, :, None, None])
    v_j, w_j, v_c, w_c = (
        keops.LazyTensor(t.resolve_conj()[:, None, :, None]) for t in (v, w, v.conj(), w.conj())
    )
    return (v_j / (z_i - w_j) + v_c / (z_i - w_c)).sum(2)[..., 0]


def _kernel_from_cauchy(
    cauchy: Callable[[Tensor, Tensor, Tensor], Tensor],
    Lambda: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    l: int,
) -> Tensor:
    """Gu et al. 2022 (S4), Algorithm 1, in the basis of half the modes: four Cauchy sums and Woodbury.

    Step 1 takes A_bar^l from dense matrices, as the published code does. Its frequencies are l points that miss
    -1, where z is infinite: those of an odd length, one more, of which the kernel is the first l.
    """
    n = Lambda.shape[1]
    L, p = torch.cat([Lambda, Lambda.conj()], 1), torch.cat([P, P.conj()], 1)
    half = dt[:, None, None] / 2 * (torch.diag_embed(L) - p @ p.mH)
    eye = torch.eye(2 * n, dtype=L.dtype)
    points = l + 1 - l % 2
    A_bar = torch.linalg.solve(eye - half, eye + half)
    row = torch.cat([C, C.conj()], 1)[:, None]
    C_tilde = (row - row @ torch.linalg.matrix_power(A_bar, points))[:, 0, :n]
    omega = torch.exp(-2j * torch.pi * torch.arange(points // 2 + 1) / points).to(L.dtype)
    z = 2 / dt[:, None] * (1 - omega) / (1 + omega)
    p1 = P[..., 0]
    k00, k01, k10, k11 = (
        cauchy(v, z, Lambda) for v in (C_tilde * B, C_tilde * p1, p1.conj() * B, p1.conj() * p1)
    )
    spectrum = 2 / (1 + omega) * (k00 - k01 * k10 / (1 + k11))
    return torch.fft.irfft(spectrum, n=points)[:, :l]


@peer("s4_kernel", "Cauchy by broadcasting")
def _naive_s4(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    return _kernel_from_cauchy(_cauchy_by_broadcasting, Lambda, P, B, C, dt, l)


@peer("s4_kernel", "Cauchy by pykeops", package="pykeops", module="pykeops.torch")
def _keops_s4(keops: Any, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    return _kernel_from_cauchy(functools.partial(_cauchy_by_keops, keops), Lambda, P, B, C, dt, l)


def _modes(A: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """(h, n / 2) each: the weights of the modes, and the logarithms of A_bar."""
    log_a = A * dt[:, None]
    return C * B * torch.expm1(log_a) / A, log_a


@peer("s4d_kernel", "Vandermonde by broadcasting")
def _naive_s4d(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    """The published S4D kernel: the whole (h, n, l) matrix, then one product."""
    weights, log_a = _modes(A, B, C, dt)
    powers = torch.exp(log_a[..., None] * torch.arange(l))
    return 2 * torch.einsum("hn,hnl->hl", weights, powers).real


@peer("s4d_kernel", "Vandermonde by pykeops", package="pykeops", module="pykeops.torch")
def _keops_s4d(keops: Any, A: Tensor, B: Tensor, C: Tensor, dt: Tensor, *, l: int) -> Tensor:
    weights, log_a = _modes(A, B, C, dt)
    steps = torch.arange(l).to(A.dtype).expand(len(A), l).contiguous()
    t_i = keops.LazyTensor(steps[:, :, None, None])
    v_j, w_j = (keops.LazyTensor(v[:, None, :, None]) for v in (weights, log_a))
    return 2 * (v_j * (t_i * w_j).exp()).sum(2)[..., 0].real


# --- Implicit attention -------------------------------------------------------------------------


@peer("selective_scan_matrix", "published triple loop")
def _triple_loop(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Ali et al. 2024 (Hidden Attention of Mamba), Eq. 10, the way of the published code."""
    b, l, d = dt.shape
    A_bar = torch.exp(dt[..., None] * A)  # (b, l, d, n)
    B_bar = dt[..., None] * B[:, :, None]
    M = dt.new_zeros(b, d, l, l)
    for i in range(l):
        for j in range(i + 1):
            product = torch.ones_like(A_bar[:, 0])
            for k in range(j + 1, i + 1):
                product = product * A_bar[:, k]
            M[:, :, i, j] = (C[:, i, None] * product * B_bar[:, j]).sum(-1)
    return M


@peer("selective_scan_matrix", "segsum and einsum")
def _by_segsum(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    log_a = (dt[..., None] * A).permute(0, 2, 3, 1)  # (b, d, n, l)
    return torch.einsum("bin,bdnij,bjd,bjn->bdij", C, _segsum(log_a).exp(), dt, B)
