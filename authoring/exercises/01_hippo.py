# %% [markdown]
# # Exercises 01: HiPPO
#
# Five functions that together are HiPPO: the best numbers, the picture they paint, the matrix that updates
# them, the step, and the sliding window. `hint("hippo.legs_matrix")` helps three times, and
# `solution("hippo.legs_matrix")` opens after one honest try. The checks of this chapter run with float64 as torch's
# default dtype, as this notebook does. The library's own version of what you are to write (`hippo_matrix`,
# `hippo_project`, `hippo_reconstruct`, `discretize`) may not be called; the check says so if you do. The lesson: [01 HiPPO](../notebooks/01_hippo.ipynb).

# %%
import torch
from ssmcourse import check, hint, progress, solution
from ssmcourse.explore import MatrixView, curves, show
from ssmcourse.tasks.signals import band_limited_noise
from torch import Tensor

torch.set_default_dtype(torch.float64)

# %% [markdown]
# The basis of all five is $g_n(s) = \sqrt{2n+1}\,P_n(2s - 1)$ on $s \in [0, 1]$, with $s = 0$ the oldest moment
# and $s = 1$ now. You may use this function, or write your own. It takes points in $[0, 1]$ and does the shift to
# $2s - 1$ itself:


# %%
def legendre_basis(n: int, points: Tensor) -> Tensor:
    """g_0 .. g_{n-1} at points in [0, 1]: (points,) -> (points, n)."""
    z = 2 * points - 1
    P = [torch.ones_like(z), z]
    for k in range(1, n - 1):
        P.append(((2 * k + 1) * z * P[k] - k * P[k - 1]) / (k + 1))
    return torch.stack(P[:n], dim=1) * torch.sqrt(2 * torch.arange(n, dtype=points.dtype) + 1)


# %% [markdown]
# ## 1. `project_window` (difficulty 2, 10 minutes)
#
# The best $n$ numbers for a recorded past: $c_k = \int_0^1 f(s)\,g_k(s)\,ds$. The record has $l$ samples; sample
# $i$ holds for the $i$-th of $l$ equal steps, so take $g_k$ at the middle of each step, $s_i = (i + \tfrac12)/l$,
# and the integral is the mean of $f(s_i)\,g_k(s_i)$.
#
# | | shape | |
# |---|---|---|
# | `f` | `(l,)` | the past, oldest first, float64 |
# | `n` | an integer, at least 1 | how many numbers to keep |
# | returns | `(n,)` | the coefficients |
#
# Worked example: with `f = torch.tensor([1.0, 1, 1, 1])`, `project_window(f, 2)` is `[1, 0]`: a constant past has a
# mean and no slope. With `f = torch.tensor([0.0, 1])` it is `[0.5, 0.4330]`: $\tfrac12(0 + 1)$, and $\tfrac12\sqrt3\,(-0.5\cdot 0 + 0.5\cdot 1)$.


# %%
def project_window(f: Tensor, n: int) -> Tensor:
    """Coefficients of the best polynomial of degree < n: f (l,) -> (n,)."""
    ### BEGIN SOLUTION
    middles = (torch.arange(len(f), dtype=f.dtype) + 0.5) / len(f)
    return legendre_basis(n, middles).T @ f / len(f)
    ### END SOLUTION


# %%
project_report = check(project_window)
project_report

# %% [markdown]
# ## 2. `reconstruct_window` (difficulty 2, 10 minutes)
#
# The way back: $\hat f(s) = \sum_k c_k\,g_k(s)$.
#
# | | shape | |
# |---|---|---|
# | `c` | `(n,)` | the coefficients, float64 |
# | `points` | `(p,)` | where to draw, in [0, 1], 0 the oldest |
# | returns | `(p,)` | the approximation there |
#
# Worked example: `reconstruct_window(torch.tensor([2.0, 1]), torch.tensor([0.0, 0.5, 1]))` is `[0.2679, 2, 3.7321]`, since $g_1 = \sqrt3\,(2s-1)$.


# %%
def reconstruct_window(c: Tensor, points: Tensor) -> Tensor:
    """The polynomial with coefficients c at points: (n,), (p,) -> (p,)."""
    ### BEGIN SOLUTION
    return legendre_basis(len(c), points) @ c
    ### END SOLUTION


# %%
report = check(reconstruct_window)
report

# %%
if report.passed and project_report.passed:
    past = band_limited_noise(400, cycles=4, seed=3)
    s = (torch.arange(400) + 0.5) / 400
    drawn = {f"{n} numbers": reconstruct_window(project_window(past, n), s) for n in (4, 12)}
    show(
        curves({"the past": past, **drawn}, x=s, x_name="position in the past", y_name="signal"),
        alt="A smooth signal and your two approximations of it: 12 numbers follow it, 4 do not.",
    )

# %% [markdown]
# ## 3. `legs_matrix` (difficulty 2, 10 minutes)
#
# The matrices of $c' = \frac1t(Ac + Bf)$, HiPPO-LegS:
#
# $$A_{ik} = -\begin{cases}\sqrt{(2i+1)(2k+1)} & i > k\\ i+1 & i = k\\ 0 & i < k\end{cases}\qquad B_i = \sqrt{2i+1},$$
#
# with rows $i$ and columns $k$ counted from 0.
#
# | | shape | |
# |---|---|---|
# | `n` | an integer, at least 1 | the number of coefficients |
# | returns | `A (n, n)`, `B (n,)` | float64, the minus inside `A` |
#
# Worked example: `legs_matrix(2)` is `[[-1, 0], [-1.7321, -2]]` and `[1, 1.7321]`.


# %%
def legs_matrix(n: int) -> tuple[Tensor, Tensor]:
    """A (n, n) and B (n,) of HiPPO-LegS, float64."""
    ### BEGIN SOLUTION
    index = torch.arange(n, dtype=torch.float64)
    B = torch.sqrt(2 * index + 1)
    A = -torch.tril(torch.outer(B, B), -1) - torch.diag(index + 1)
    return A, B
    ### END SOLUTION


# %%
matrix_report = check(legs_matrix)
matrix_report

# %%
MatrixView(legs_matrix(24)[0], title="your A of HiPPO-LegS", row_name="changes number i", column_name="number k") if matrix_report.passed else None

# %% [markdown]
# ## 4. `legs_step` (difficulty 3, 15 minutes)
#
# One step of the memory by the bilinear rule, which averages $Ac$ before and after. Sample number $k$
# ($k = 1, 2, \ldots$) moves the numbers from $c_{k-1}$ to $c_k$:
#
# $$c_k = c_{k-1} + \frac1k\left(A\,\frac{c_{k-1} + c_k}{2} + B f_k\right),$$
#
# with $c_k$ on both sides, so a linear system has to be solved.
#
# | | shape | |
# |---|---|---|
# | `c` | `(n,)` | $c_{k-1}$ |
# | `f` | a number or `()` | the new sample $f_k$ |
# | `k` | an integer, at least 1 | which sample it is |
# | `A`, `B` | `(n, n)` lower triangular, `(n,)` | use what you are given, not only LegS's |
# | returns | `(n,)` | $c_k$ |
#
# Worked example: with `n = 1` ($A = -1$, $B = 1$), $c = 2$, $f = 10$, $k = 4$: $c_k = (2\cdot\tfrac78 + \tfrac{10}4) /
# \tfrac98 = 3.7778$. A mean of the four samples would be 4; the bilinear rule comes close.


# %%
def legs_step(c: Tensor, f: float, k: int, A: Tensor, B: Tensor) -> Tensor:
    """c_k from c_{k-1} and sample k, bilinear LegS: (n,) -> (n,)."""
    ### BEGIN SOLUTION
    eye = torch.eye(len(c), dtype=c.dtype)
    right = (eye + A / (2 * k)) @ c + B * f / k
    return torch.linalg.solve(eye - A / (2 * k), right)
    ### END SOLUTION


# %%
report = check(legs_step)
report

# %%
if report.passed and matrix_report.passed:
    past = band_limited_noise(400, cycles=4, seed=3)
    A, B = legs_matrix(24)
    c = torch.zeros(24)
    for k, f_k in enumerate(past, start=1):
        c = legs_step(c, f_k, k, A, B)
    s = (torch.arange(400) + 0.5) / 400
    show(
        curves(
            {"the past": past, "your memory": legendre_basis(24, s) @ c},
            x=s,
            x_name="position in the past",
            y_name="signal",
        ),
        alt="A smooth signal and the memory's drawing of it, after one pass through the samples: they agree.",
    )

# %% [markdown]
# ## 5. `legt_matrix` (difficulty 3, 15 minutes)
#
# The sliding window of length $\theta$: $c' = Ac + Bf$ with
#
# $$A_{ik} = -\frac{\sqrt{(2i+1)(2k+1)}}{\theta}\begin{cases}1 & i \ge k\\ (-1)^{i-k} & i < k\end{cases}\qquad B_i = \frac{\sqrt{2i+1}}{\theta}.$$
#
# | | shape | |
# |---|---|---|
# | `n` | an integer, at least 1 | the number of coefficients |
# | `theta` | a positive number | the window's length |
# | returns | `A (n, n)`, `B (n,)` | float64 |
#
# Worked example: `legt_matrix(2, 2.0)` is `[[-0.5, 0.8660], [-0.8660, -1.5]]` and `[0.5, 0.8660]`.


# %%
def legt_matrix(n: int, theta: float) -> tuple[Tensor, Tensor]:
    """A (n, n) and B (n,) of HiPPO-LegT, orthonormal, float64."""
    ### BEGIN SOLUTION
    index = torch.arange(n, dtype=torch.float64)
    root = torch.sqrt(2 * index + 1)
    sign = (-1.0) ** (index[:, None] - index[None, :])
    signs = torch.where(index[:, None] >= index[None, :], 1.0, sign)
    return -torch.outer(root, root) * signs / theta, root / theta
    ### END SOLUTION


# %%
report = check(legt_matrix)
report

# %%
MatrixView(legt_matrix(24, 1.0)[0], title="your A of HiPPO-LegT", row_name="changes number i", column_name="number k") if report.passed else None

# %% [markdown]
# ## Done?

# %% tags=["nbval-ignore-output"]
progress()
