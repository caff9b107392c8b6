"""Claim: LegS in O(n) a step, compiled, is over 50 times faster than a loop of dense matrices.

Both project one signal onto 64 coefficients, float64, bilinear rule, the last state only, on one
thread and in one process, taking turns. The compiled scan runs on a million samples. The dense
loop costs the same at every sample, so it is timed on fewer and given per sample. It is the
leanest one we know in torch: it never inverts, it solves with the triangle.
"""

from __future__ import annotations

import statistics
import time

import torch
from record import store

from ssmcourse.hippo import hippo_matrix, hippo_project, hippo_reconstruct

N, SAMPLES, DENSE_SAMPLES, ROUNDS = 64, 1_000_000, 5_000, 7


def dense_loop(f: torch.Tensor) -> torch.Tensor:
    """(I - A/2k) c_k = (I + A/2k) c_{k-1} + B f_k / k, written out, with a triangular solve."""
    A, B = hippo_matrix("legs", N)
    eye, c = torch.eye(N, dtype=f.dtype), torch.zeros(N, 1, dtype=f.dtype)
    B = B[:, None]
    for k, value in enumerate(f.tolist(), start=1):
        half = A / (2 * k)
        right = torch.addmm(c, half, c).add_(B, alpha=value / k)
        c = torch.linalg.solve_triangular(eye - half, right, upper=False)
    return c[:, 0]


def cpu_seconds(function, *arguments, **options) -> float:
    start = time.process_time()
    function(*arguments, **options)
    return time.process_time() - start


def speed() -> dict[str, float]:
    f = torch.randn(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = f[:DENSE_SAMPLES]
    error = (dense_loop(head) - hippo_project(head, N, last_only=True, backend="cpu")).abs().max()
    assert error < 1e-11, f"the two disagree by {error:.1e}"
    compiled, dense, reference = [], [], []
    for _ in range(ROUNDS):
        compiled.append(cpu_seconds(hippo_project, f, N, last_only=True, backend="cpu") / SAMPLES)
        dense.append(cpu_seconds(dense_loop, head) / DENSE_SAMPLES)
        reference.append(
            cpu_seconds(hippo_project, head, N, last_only=True, backend="reference") / DENSE_SAMPLES
        )
    medians = [statistics.median(times) for times in (compiled, dense, reference)]
    return {
        "compiled_us_per_sample": 1e6 * medians[0],
        "dense_loop_us_per_sample": 1e6 * medians[1],
        "reference_backend_us_per_sample": 1e6 * medians[2],
        "dense_loop_over_compiled": medians[1] / medians[0],
    }


def memory_of_the_past() -> dict[str, float]:
    """What is left of the signal, as normalised squared errors, on band-limited noise of 16 cycles."""
    l, window = 2000, 500
    t = (torch.arange(l, dtype=torch.float64) + 0.5) / l
    angle = 2 * torch.pi * t * torch.arange(1, 17, dtype=torch.float64)[:, None]
    a, b = torch.randn(2, 16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = (a * angle.cos() + b * angle.sin()).sum(0)
    recent = (torch.arange(window, dtype=torch.float64) + 0.5) / window

    def nmse(got, want):
        return float(((got - want) ** 2).mean() / (want**2).mean())

    def last(signal, measure="legs", theta=None, method="bilinear"):
        return hippo_project(signal, N, measure, theta=theta, method=method, last_only=True)

    legs, legt = last(f), hippo_reconstruct(last(f, "legt", window), recent, "legt")
    euler = hippo_project(f, 16, method="euler").abs().max()
    return {
        "legs_whole_past": nmse(hippo_reconstruct(legs, t), f),
        "legt_window_of_the_record": nmse(hippo_reconstruct(last(f, "legt"), t, "legt"), f),
        "legt_quarter_window_whole_past": nmse(torch.cat([torch.zeros(l - window), legt]), f),
        "legt_quarter_window_inside": nmse(legt, f[-window:]),
        "legs_change_when_subsampled_by_2": float((last(f[::2]) - legs).norm() / legs.norm()),
        "largest_coefficient_forward_euler_n16": float(euler),
    }


def main() -> None:
    torch.set_num_threads(1)
    figures = speed()
    store(
        "hippo",
        n=N,
        samples={"compiled": SAMPLES, "dense": DENSE_SAMPLES, "rounds": ROUNDS},
        speed=figures,
        memory=memory_of_the_past(),
    )
    if figures["dense_loop_over_compiled"] <= 50:
        raise SystemExit("the claim fails: the compiled projection is not over 50 times faster")


if __name__ == "__main__":
    main()
