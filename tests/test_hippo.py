"""Projection, reconstruction and the O(n) step: figures, properties, gradients, refusals."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmcourse.hippo import (
    MEASURES,
    hippo_basis,
    hippo_matrix,
    hippo_project,
    hippo_reconstruct,
    legs_step,
)
from ssmcourse.tolerance import mismatch

F64 = torch.float64
METHODS = ("euler", "backward", "bilinear", "zoh")
ALPHA = {"euler": 0.0, "bilinear": 0.5, "backward": 1.0}


def band_limited(l, cycles=16, seed=0):
    """Noise with every frequency from 1 to `cycles` per record, sampled in the middle of l steps."""
    generator = torch.Generator().manual_seed(seed)
    t = (torch.arange(l, dtype=F64) + 0.5) / l
    angle = 2 * math.pi * t * torch.arange(1, cycles + 1, dtype=F64)[:, None]
    a, b = torch.randn(2, cycles, 1, dtype=F64, generator=generator)
    return (a * angle.cos() + b * angle.sin()).sum(0)


def middles(l):
    return (torch.arange(l, dtype=F64) + 0.5) / l


def nmse(got, want):
    return float(((got - want) ** 2).mean() / (want**2).mean())


def oracle(f, n, measure, theta, times, method):
    """The recurrence by numpy and scipy, step by step, one row; its own discretisation."""
    from scipy.linalg import expm

    A, B = (m.numpy() for m in hippo_matrix(measure, n, theta=theta))
    c, out, before = np.zeros(n), [], 0.0
    for k, (value, now) in enumerate(zip(f.tolist(), times.tolist(), strict=True), start=1):
        step = now - before
        if measure == "legs":
            step = math.log((k + 1) / k) if method == "zoh" else step / now
        if method == "zoh":
            E = expm(A * step)
            driven = np.linalg.lstsq(A, (E - np.eye(n)) @ B, rcond=None)[0]
            c = E @ c + driven * value
        else:
            a = ALPHA[method] * step
            right = c + (step - a) * (A @ c) + step * B * value
            c = np.linalg.solve(np.eye(n) - a * A, right)
        out.append(c)
        before = now
    return np.stack(out)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("l", [1, 2, 3, 17, 64, 65])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_backend_is_the_oracle(measure, l, backend):
    f = band_limited(max(l, 4))[:l]
    dt, n = 0.25, 4
    for method in METHODS:
        if measure == "fourier" and method == "zoh":
            continue  # its A is singular, the oracle divides by A: the next test
        want = oracle(f, n, measure, 3.0, dt * torch.arange(1, l + 1), method)
        got = hippo_project(f, n, measure, theta=3.0, dt=dt, method=method, backend=backend)
        assert got.shape == (l, n)
        assert mismatch(got, want, terms=l * n) is None, method
        last = hippo_project(f, n, measure, theta=3.0, dt=dt, method=method, backend=backend, last_only=True)
        assert last.shape == (n,)
        assert mismatch(last, want[-1], terms=l * n) is None, method


def test_fourier_zoh_is_the_limit_of_small_steps():
    f = band_limited(40)
    coarse = hippo_project(f, 6, "fourier", theta=20.0, method="zoh")
    fine = hippo_project(f.repeat_interleave(512), 6, "fourier", theta=20.0, dt=1 / 512)[511::512]
    assert (coarse - fine).abs().max() < 1e-5 * fine.abs().max()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("measure", MEASURES)
def test_uneven_times(measure, backend):
    l, n = 70, 4
    times = torch.cumsum(torch.rand(l, generator=torch.Generator().manual_seed(3), dtype=F64) + 0.05, 0)
    f = band_limited(l)
    for method in METHODS[:3]:
        want = oracle(f, n, measure, 5.0, times, method)
        got = hippo_project(f, n, measure, theta=5.0, times=times, method=method, backend=backend)
        assert mismatch(got, want, terms=l * n) is None, method
        last = hippo_project(
            f, n, measure, theta=5.0, times=times, method=method, backend=backend, last_only=True
        )
        assert mismatch(last, want[-1], terms=l * n) is None, method


@pytest.mark.parametrize("measure", MEASURES)
def test_even_times_are_dt_and_no_theta_is_the_record(measure):
    f = band_limited(50)
    times = 0.5 * torch.arange(1, 51, dtype=F64)
    by_dt = hippo_project(f, 6, measure, dt=0.5)
    assert mismatch(hippo_project(f, 6, measure, times=times), by_dt, terms=300) is None
    assert mismatch(hippo_project(f, 6, measure, dt=0.5, theta=25.0), by_dt, terms=300) is None


@pytest.mark.parametrize("method", list(ALPHA))
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_step_in_order_n_is_the_matrix_step(method, n):
    """Against A itself, for ratios from the first step's 1 to small ones."""
    generator = torch.Generator().manual_seed(n)
    A, B = hippo_matrix("legs", n)
    eye, alpha = torch.eye(n, dtype=F64), ALPHA[method]
    for ratio in (1.0, 0.5, 0.25, 1 / 3, 0.01):
        c, f = (
            torch.randn(3, n, dtype=F64, generator=generator),
            torch.randn(3, dtype=F64, generator=generator),
        )
        right = c @ (eye + (1 - alpha) * ratio * A).mT + ratio * f[:, None] * B
        want = torch.linalg.solve(eye - alpha * ratio * A, right.mT).mT
        assert mismatch(legs_step(c, f, ratio, method=method), want, terms=n * n) is None


def test_the_step_is_the_projection():
    f, c = band_limited(30), torch.zeros(8, dtype=F64)
    for k, value in enumerate(f, start=1):
        c = legs_step(c, value, 1 / k)
    assert mismatch(c, hippo_project(f, 8, last_only=True), terms=240) is None


def test_one_coefficient_is_a_gate():
    """N = 1: c <- (1 - g) c + g f. With g = 1/k that is the running mean."""
    f, c, g = band_limited(20), torch.tensor([0.3], dtype=F64), 0.2
    stepped = legs_step(c, f[0], g, method="euler")
    assert mismatch(stepped, (1 - g) * c + g * f[:1]) is None
    means = f.cumsum(0) / torch.arange(1, 21)
    for method in ("euler", "zoh"):
        got = hippo_project(f, 1, method=method)[:, 0]
        if method == "zoh":  # its clock runs from 1, on which nothing was heard yet
            means = f.cumsum(0) / torch.arange(2, 22)
        assert mismatch(got, means, terms=20) is None
    gate = hippo_project(f, 1, "legt", theta=5.0, method="euler")[:, 0]
    want, state = [], 0.0
    for value in f.tolist():
        state = (1 - g) * state + g * value
        want.append(state)
    assert mismatch(gate, want, terms=20) is None


# --- what the course claims -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_legs_remembers_the_whole_past_and_a_short_window_does_not(seed):
    l, n = 2000, 64
    f = band_limited(l, seed=seed)
    legs = hippo_project(f, n, last_only=True)
    assert nmse(hippo_reconstruct(legs, middles(l)), f) < 1e-3
    dt, theta = 0.001, 0.5  # a record of 2 s, a window of half a second
    legt = hippo_project(f, n, "legt", theta=theta, dt=dt, last_only=True)
    inside = hippo_reconstruct(legt, middles(500), "legt")
    assert nmse(inside, f[-500:]) < 1e-3
    whole = torch.cat([torch.zeros(1500, dtype=F64), inside])
    assert nmse(whole, f) > 0.3


def test_forward_euler_explodes_and_the_others_do_not():
    """Gu et al.'s eq. 4 is right, and useless while n is above k."""
    f = band_limited(2000)
    largest = {m: hippo_project(f, 16, method=m).abs().max().item() for m in METHODS}
    assert largest["euler"] > 1e6
    assert max(largest[m] for m in METHODS if m != "euler") < 10
    assert hippo_project(f, 64, method="euler").abs().max() > 1e40
    later = hippo_project(f, 16, method="euler", last_only=True)
    assert later.abs().max() < 10, "in float64 it comes back"


def test_resampling_moves_legt_and_not_legs():
    f = band_limited(2000)
    for measure, theta, moved in (("legs", None, (0, 0.05)), ("legt", 500.0, (0.5, 10))):
        full = hippo_project(f, 64, measure, theta=theta, last_only=True)
        half = hippo_project(f[::2], 64, measure, theta=theta, last_only=True)
        change = ((half - full).norm() / full.norm()).item()
        assert moved[0] <= change < moved[1]


@pytest.mark.parametrize(("measure", "left"), [("legt", 1e-13), ("lmu", 1e-13), ("fourier", 1e-4)])
def test_a_window_forgets(measure, left):
    """Ten windows later nothing is left; Fourier rings longest, its slowest pole is at -1.16 / θ."""
    f = torch.zeros(600, dtype=F64)
    f[:100] = 1
    c = hippo_project(f, 8, measure, theta=50.0)
    assert c[99].abs().max() > 0.9
    assert c[-1].abs().max() < left


def test_legt_and_lmu_are_one_memory():
    f, points = band_limited(200), middles(50)
    pasts = [
        hippo_reconstruct(hippo_project(f, 12, m, theta=70.0, last_only=True), points, m)
        for m in ("legt", "lmu")
    ]
    assert mismatch(pasts[0], pasts[1], terms=2400) is None


def test_constant_signal():
    """Each memory of a 1 that has always been there reconstructs 1."""
    f = torch.ones(3000, dtype=F64)
    for measure in MEASURES:
        c = hippo_project(f, 8, measure, theta=100.0, dt=0.05 if measure == "lagt" else 1.0, last_only=True)
        past = hippo_reconstruct(c, middles(20), measure, theta=3.0)
        assert (past - 1).abs().max() < 0.01, measure


# --- properties --------------------------------------------------------------------------------

measures, methods = st.sampled_from(MEASURES), st.sampled_from(METHODS)


def random(seed, *shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(measures, methods, st.integers(1, 80), st.integers(0, 10**6))
def test_linear_and_row_by_row(measure, method, l, seed):
    f = random(seed, 2, 3, l)
    options = {"measure": measure, "method": method, "theta": float(l)}
    c = hippo_project(f, 4, **options)
    assert c.shape == (2, 3, l, 4)
    assert mismatch(hippo_project(f[1, 2], 4, **options), c[1, 2], terms=4 * l) is None
    mixed = hippo_project(2 * f[0] - 3 * f[1], 4, **options)
    scale = max(1.0, float(c.abs().max()))
    assert mismatch(mixed / scale, (2 * c[0] - 3 * c[1]) / scale, terms=100 * l) is None


@settings(max_examples=25, deadline=None)
@given(measures, methods, st.integers(2, 80), st.data())
def test_causal_and_last_is_last(measure, method, l, data):
    cut = data.draw(st.integers(1, l - 1))
    f = random(l, l)
    options = {"measure": measure, "method": method, "theta": 20.0}
    c = hippo_project(f, 4, **options)
    changed = f.clone()
    changed[cut:] += 1
    assert mismatch(hippo_project(changed, 4, **options)[:cut], c[:cut], terms=4 * l) is None
    assert mismatch(hippo_project(f[:cut], 4, last_only=True, **options), c[cut - 1], terms=4 * l) is None


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["euler", "backward", "bilinear"]), st.floats(1e-3, 1e3), st.integers(1, 60))
def test_legs_has_no_unit_of_time(method, stretch, l):
    """Proposition 3: stretching time changes no coefficient. dt is not looked at."""
    times = (random(l, l).abs() + 0.01).cumsum(0)
    f = random(l + 1, l)
    c = hippo_project(f, 5, times=times, method=method)
    scale = max(1.0, float(c.abs().max()))
    stretched = hippo_project(f, 5, times=stretch * times, method=method)
    assert mismatch(stretched / scale, c / scale, terms=100 * l) is None
    assert (hippo_project(f, 5, dt=stretch, method=method) == hippo_project(f, 5, method=method)).all()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["legt", "lmu", "fourier"]), methods, st.floats(1e-3, 1e3))
def test_a_window_scales_with_its_unit(measure, method, unit):
    f = random(7, 40)
    c = hippo_project(f, 4, measure, theta=15.0, method=method)
    scaled = hippo_project(f, 4, measure, theta=15.0 * unit, dt=unit, method=method)
    assert mismatch(scaled, c, terms=10_000) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_narrow_types_are_rounded_once(dtype, backend):
    f = band_limited(300).to(dtype)
    for measure, method in (("legs", "bilinear"), ("legs", "zoh"), ("legt", "bilinear")):
        for last_only in (False, True):
            options = {"method": method, "last_only": last_only, "backend": backend}
            got = hippo_project(f, 16, measure, **options)
            assert got.dtype == dtype
            assert mismatch(got, hippo_project(f.double(), 16, measure, **options)) is None
    c = got
    assert (
        mismatch(hippo_reconstruct(c, middles(9), "legt"), hippo_basis("legt", 16, middles(9)) @ c.double())
        is None
    )


def test_views_are_read_right_and_left_alone():
    wide = random(1, 3, 40)
    kept = wide.clone()
    for f in (wide[:, ::2], wide.T, wide[1].expand(4, 40)):
        for measure in ("legs", "legt"):
            want = hippo_project(f.contiguous(), 5, measure, backend="reference")
            assert mismatch(hippo_project(f, 5, measure), want, terms=200) is None
    assert (wide == kept).all()
    assert hippo_project(wide[:0], 5).shape == (0, 40, 5)


# --- gradients ---------------------------------------------------------------------------------


def projected(options, f, times=None):
    return hippo_project(f, 4, times=times, **options)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_gradients(measure, last_only, backend):
    f = random(0, 2, 5).requires_grad_()
    times = torch.tensor([0.4, 1.0, 1.3, 2.9, 3.1], dtype=F64, requires_grad=True)
    for method in ("bilinear", "zoh"):
        options = {"measure": measure, "last_only": last_only, "backend": backend, "method": method}
        assert torch.autograd.gradcheck(partial(projected, options | {"theta": 3.0}), (f,))
        if (measure, method) != ("legs", "zoh"):
            assert torch.autograd.gradcheck(partial(projected, options), (f, times))


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_of_reconstruction(measure):
    c, points = random(1, 2, 4).requires_grad_(), torch.tensor([0.1, 0.7], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, p: hippo_reconstruct(c, p, measure, theta=2.0), (c, points))


def test_gradient_of_a_step():
    c, f, ratio = random(2, 3, 4), random(3, 3), torch.tensor([1.0, 0.3, 0.1], dtype=F64)
    inputs = tuple(t.requires_grad_() for t in (c, f, ratio))
    for method in ALPHA:
        assert torch.autograd.gradcheck(lambda c, f, r, m=method: legs_step(c, f, r, method=m), inputs)


def test_influence_of_the_past_does_not_vanish():
    """Proposition 5: |dc(t) / df(s)| is of order 1/t for every s, old or new."""
    for l in (100, 400):
        f = random(4, l).requires_grad_()
        c = hippo_project(f, 8, last_only=True)
        size = torch.stack([torch.autograd.grad(x, f, retain_graph=True)[0] for x in c]).norm(dim=0)
        assert (size[l // 10 :] * l).min() > 0.5
        assert (size[l // 10 :] * l).max() < 20


# --- memory ------------------------------------------------------------------------------------

MEMORY = """
import resource, torch
from ssmcourse.hippo import hippo_project
torch.set_num_threads(1)
f = torch.zeros(1_000_000)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for measure in ("legs", "legt"):
    hippo_project(f[:1000], 64, measure, last_only=True)
    before = peak()
    hippo_project(f, 64, measure, last_only=True)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_is_free_of_the_length():
    """A million samples: less than 40 MB beside f, where every state would take 256 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    grown = [int(line) for line in done.stdout.split()]
    assert len(grown) == 2
    assert max(grown) < 40_000
